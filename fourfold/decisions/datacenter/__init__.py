"""Which hall, how full, how cooled: what each kilowatt of IT load costs on top, and how much of it can go.

In: a hall (load, rating, PUE, set point), hourly outside temperatures, an hourly load and servers. Out: how the heat leaves in each hour (`cool`) and
how many servers stay on (`serve`). Baseline: the chiller runs all year and every server stays on. Wrong would be: inlet air above the set point, a
load that its servers cannot carry, a published figure passed off as measured. """
