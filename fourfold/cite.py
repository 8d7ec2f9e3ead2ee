"""The papers that a result rests on. Techniques name them by key (`Rewrite.cites`); `fourfold cite` prints them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fourfold.errors import InputError


@dataclass(frozen=True)
class Paper:
    """`kind` is the BibTeX entry type; `venue` the journal, proceedings or publisher; `eprint` the arXiv number where there is one."""

    kind: str
    authors: tuple[str, ...]
    title: str
    venue: str
    year: int
    eprint: str = ""

    def __str__(self) -> str:
        names = self.authors[0] if len(self.authors) == 1 else " & ".join(self.authors) if len(self.authors) == 2 else f"{self.authors[0]} et al."
        return f"{names} ({self.year}). {self.title}. {self.venue}." + (f" arXiv:{self.eprint}" if self.eprint else "")

    def bibtex(self, key: str) -> str:
        """The entry under `key`."""
        place = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}.get(self.kind, "howpublished")
        fields = {"author": " and ".join(self.authors), "title": f"{{{self.title}}}", place: self.venue, "year": self.year, "eprint": self.eprint}
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
        return f"@{self.kind}{{{key},\n{body}\n}}"


def _paper(kind: str, authors: str, title: str, venue: str, year: int, eprint: str = "") -> Paper:
    return Paper(kind, tuple(name.strip() for name in authors.split(",")), title, venue, year, eprint)


_TALK, _PRINT = "inproceedings", "article"

BIBLIOGRAPHY: dict[str, Paper] = {
    # what to remove
    "men2024shortgpt": _paper(
        "misc",
        "Xin Men, Mingyu Xu, Qingyu Zhang, Bingning Wang, Hongyu Lin, Yaojie Lu, Xianpei Han, Weipeng Chen",
        "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        "arXiv",
        2024,
        "2403.03853",
    ),
    "sajjad2023": _paper(
        _PRINT,
        "Hassan Sajjad, Fahim Dalvi, Nadir Durrani, Preslav Nakov",
        "On the Effect of Dropping Layers of Pre-trained Transformer Models",
        "Computer Speech & Language 77",
        2023,
        "2004.03844",
    ),
    "michel2019": _paper(_TALK, "Paul Michel, Omer Levy, Graham Neubig", "Are Sixteen Heads Really Better than One?", "NeurIPS", 2019, "1905.10650"),
    "kwon2022": _paper(
        _TALK,
        "Woosuk Kwon, Sehoon Kim, Michael W. Mahoney, Joseph Hassoun, Kurt Keutzer, Amir Gholami",
        "A Fast Post-Training Pruning Framework for Transformers",
        "NeurIPS",
        2022,
        "2204.09656",
    ),
    "hassibi1993obs": _paper(
        _TALK,
        "Babak Hassibi, David G. Stork",
        "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon",
        "Advances in Neural Information Processing Systems 5",
        1993,
    ),
    "kurtic2023ziplm": _paper(
        _TALK,
        "Eldar Kurtic, Elias Frantar, Dan Alistarh",
        "ZipLM: Inference-Aware Structured Pruning of Language Models",
        "NeurIPS",
        2023,
        "2302.04089",
    ),
    "xia2022cofi": _paper(
        _TALK, "Mengzhou Xia, Zexuan Zhong, Danqi Chen", "Structured Pruning Learns Compact and Accurate Models", "ACL", 2022, "2204.00408"
    ),
    "lagunas2021": _paper(
        _TALK, "François Lagunas, Ella Charlaix, Victor Sanh, Alexander M. Rush", "Block Pruning For Faster Transformers", "EMNLP", 2021, "2109.04838"
    ),
    "fang2023depgraph": _paper(
        _TALK,
        "Gongfan Fang, Xinyin Ma, Mingli Song, Michael Bi Mi, Xinchao Wang",
        "DepGraph: Towards Any Structural Pruning",
        "CVPR",
        2023,
        "2301.12900",
    ),
    "abdaoui2020": _paper(
        _TALK,
        "Amine Abdaoui, Camille Pradel, Grégoire Sigel",
        "Load What You Need: Smaller Versions of Multilingual BERT",
        "SustaiNLP",
        2020,
        "2010.05609",
    ),
    "yang2022textpruner": _paper(
        _TALK,
        "Ziqing Yang, Yiming Cui, Zhigang Chen",
        "TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models",
        "ACL, System Demonstrations",
        2022,
        "2203.15996",
    ),
    # teaching what stays
    "hinton2015": _paper(
        "misc", "Geoffrey Hinton, Oriol Vinyals, Jeff Dean", "Distilling the Knowledge in a Neural Network", "arXiv", 2015, "1503.02531"
    ),
    "sanh2019": _paper(
        "misc",
        "Victor Sanh, Lysandre Debut, Julien Chaumond, Thomas Wolf",
        "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        "arXiv",
        2019,
        "1910.01108",
    ),
    "jiao2020tinybert": _paper(
        _TALK,
        "Xiaoqi Jiao, Yichun Yin, Lifeng Shang, Xin Jiang, Xiao Chen, Linlin Li, Fang Wang, Qun Liu",
        "TinyBERT: Distilling BERT for Natural Language Understanding",
        "Findings of EMNLP",
        2020,
        "1909.10351",
    ),
    "wang2020minilm": _paper(
        _TALK,
        "Wenhui Wang, Furu Wei, Li Dong, Hangbo Bao, Nan Yang, Ming Zhou",
        "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        "NeurIPS",
        2020,
        "2002.10957",
    ),
    "tang2019": _paper(
        "misc",
        "Raphael Tang, Yao Lu, Linqing Liu, Lili Mou, Olga Vechtomova, Jimmy Lin",
        "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks",
        "arXiv",
        2019,
        "1903.12136",
    ),
    "kim2016": _paper(_TALK, "Yoon Kim, Alexander M. Rush", "Sequence-Level Knowledge Distillation", "EMNLP", 2016, "1606.07947"),
    "arora2017": _paper(_TALK, "Sanjeev Arora, Yingyu Liang, Tengyu Ma", "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", "ICLR", 2017),
    "kim2014": _paper(_TALK, "Yoon Kim", "Convolutional Neural Networks for Sentence Classification", "EMNLP", 2014, "1408.5882"),
    # fewer bits
    "jacob2018": _paper(
        _TALK,
        "Benoit Jacob, Skirmantas Kligys, Bo Chen, Menglong Zhu, Matthew Tang, Andrew Howard, Hartwig Adam, Dmitry Kalenichenko",
        "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        "CVPR",
        2018,
        "1712.05877",
    ),
    "zafrir2019": _paper(
        "misc", "Ofir Zafrir, Guy Boudoukh, Peter Izsak, Moshe Wasserblat", "Q8BERT: Quantized 8Bit BERT", "arXiv", 2019, "1910.06188"
    ),
    "yao2022": _paper(
        _TALK,
        "Zhewei Yao, Reza Yazdani Aminabadi, Minjia Zhang, Xiaoxia Wu, Conglong Li, Yuxiong He",
        "ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers",
        "NeurIPS",
        2022,
        "2206.01861",
    ),
    "dettmers2022": _paper(
        _TALK,
        "Tim Dettmers, Mike Lewis, Younes Belkada, Luke Zettlemoyer",
        "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
        "NeurIPS",
        2022,
        "2208.07339",
    ),
    "xiao2023smoothquant": _paper(
        _TALK,
        "Guangxuan Xiao, Ji Lin, Mickael Seznec, Hao Wu, Julien Demouth, Song Han",
        "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
        "ICML",
        2023,
        "2211.10438",
    ),
    # asking the dear model only when needed
    "viola2001": _paper(_TALK, "Paul Viola, Michael Jones", "Rapid Object Detection using a Boosted Cascade of Simple Features", "CVPR", 2001),
    "guo2017": _paper(
        _TALK, "Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Q. Weinberger", "On Calibration of Modern Neural Networks", "ICML", 2017, "1706.04599"
    ),
    "chen2020frugalml": _paper(
        _TALK,
        "Lingjiao Chen, Matei Zaharia, James Zou",
        "FrugalML: How to Use ML Prediction APIs More Accurately and Cheaply",
        "NeurIPS",
        2020,
        "2006.07512",
    ),
    "chen2023frugalgpt": _paper(
        "misc",
        "Lingjiao Chen, Matei Zaharia, James Zou",
        "FrugalGPT: How to Use Large Language Models While Reducing Cost and Improving Performance",
        "arXiv",
        2023,
        "2305.05176",
    ),
    # what a transformer must beat
    "salton1988": _paper(
        _PRINT,
        "Gerard Salton, Christopher Buckley",
        "Term-Weighting Approaches in Automatic Text Retrieval",
        "Information Processing & Management 24(5)",
        1988,
    ),
    "wang2012": _paper(
        _TALK, "Sida Wang, Christopher D. Manning", "Baselines and Bigrams: Simple, Good Sentiment and Topic Classification", "ACL", 2012
    ),
    "joulin2017": _paper(
        _TALK,
        "Armand Joulin, Edouard Grave, Piotr Bojanowski, Tomas Mikolov",
        "Bag of Tricks for Efficient Text Classification",
        "EACL",
        2017,
        "1607.01759",
    ),
    "hoerl1970": _paper(
        _PRINT, "Arthur E. Hoerl, Robert W. Kennard", "Ridge Regression: Biased Estimation for Nonorthogonal Problems", "Technometrics 12(1)", 1970
    ),
    # searching
    "deb2002": _paper(
        _PRINT,
        "Kalyanmoy Deb, Amrit Pratap, Sameer Agarwal, T. Meyarivan",
        "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II",
        "IEEE Transactions on Evolutionary Computation 6(2)",
        2002,
    ),
    "bergstra2011": _paper(
        _TALK, "James Bergstra, Rémi Bardenet, Yoshua Bengio, Balázs Kégl", "Algorithms for Hyper-Parameter Optimization", "NIPS", 2011
    ),
    "akiba2019optuna": _paper(
        _TALK,
        "Takuya Akiba, Shotaro Sano, Toshihiko Yanase, Takeru Ohta, Masanori Koyama",
        "Optuna: A Next-generation Hyperparameter Optimization Framework",
        "KDD",
        2019,
        "1907.10902",
    ),
    "ozaki2022motpe": _paper(
        _PRINT,
        "Yoshihiko Ozaki, Yuki Tanigaki, Shuhei Watanabe, Masahiro Nomura, Masaki Onishi",
        "Multiobjective Tree-Structured Parzen Estimator",
        "Journal of Artificial Intelligence Research 73",
        2022,
    ),
    "watanabe2023": _paper(
        "misc",
        "Shuhei Watanabe",
        "Tree-Structured Parzen Estimator: Understanding Its Algorithm Components and Their Roles for Better Empirical Performance",
        "arXiv",
        2023,
        "2304.11127",
    ),
    "watanabe2023ctpe": _paper(
        _TALK,
        "Shuhei Watanabe, Frank Hutter",
        "c-TPE: Tree-structured Parzen Estimator with Inequality Constraints for Expensive Hyperparameter Optimization",
        "IJCAI",
        2023,
        "2211.14411",
    ),
    "jamieson2016": _paper(
        _TALK,
        "Kevin Jamieson, Ameet Talwalkar",
        "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
        "AISTATS",
        2016,
        "1502.07943",
    ),
    "li2018hyperband": _paper(
        _PRINT,
        "Lisha Li, Kevin Jamieson, Giulia DeSalvo, Afshin Rostamizadeh, Ameet Talwalkar",
        "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
        "Journal of Machine Learning Research 18(185)",
        2018,
        "1603.06560",
    ),
    "martello1990": _paper("book", "Silvano Martello, Paolo Toth", "Knapsack Problems: Algorithms and Computer Implementations", "Wiley", 1990),
    # honest numbers
    "efron1979": _paper(_PRINT, "Bradley Efron", "Bootstrap Methods: Another Look at the Jackknife", "The Annals of Statistics 7(1)", 1979),
    "efron1993": _paper("book", "Bradley Efron, Robert J. Tibshirani", "An Introduction to the Bootstrap", "Chapman & Hall", 1993),
    "patterson2021": _paper(
        "misc",
        "David Patterson, Joseph Gonzalez, Quoc Le, Chen Liang, Lluis-Miquel Munguia, Daniel Rothchild, David So, Maud Texier, Jeff Dean",
        "Carbon Emissions and Large Neural Network Training",
        "arXiv",
        2021,
        "2104.10350",
    ),
    "patterson2022": _paper(
        _PRINT,
        "David Patterson, Joseph Gonzalez, Urs Hölzle, Quoc Le, Chen Liang, Lluis-Miquel Munguia, Daniel Rothchild, "
        "David R. So, Maud Texier, Jeff Dean",
        "The Carbon Footprint of Machine Learning Training Will Plateau, Then Shrink",
        "Computer 55(7)",
        2022,
        "2204.05149",
    ),
    # the hall
    "lei2020": _paper(
        _PRINT, "Nuoa Lei, Eric Masanet", "Statistical Analysis for Predicting Location-Specific Data Center PUE and Its Improvement Potential",
        "Energy 201", 2020
    ),
    "rasmussen2007": _paper("misc", "Neil Rasmussen", "Electrical Efficiency Modeling for Data Centers", "APC White Paper 113", 2007),
    "khankari2011": _paper(
        _PRINT, "Kishor Khankari", "Rate of Heating Analysis of Data Centers during Power Shutdown", "ASHRAE Transactions 117(1)", 2011
    ),
    "barroso2007": _paper(_PRINT, "Luiz André Barroso, Urs Hölzle", "The Case for Energy-Proportional Computing", "Computer 40(12)", 2007),
    "fan2007": _paper(
        _TALK, "Xiaobo Fan, Wolf-Dietrich Weber, Luiz André Barroso", "Power Provisioning for a Warehouse-sized Computer", "ISCA", 2007
    ),
    "crankshaw2017": _paper(
        _TALK, "Daniel Crankshaw, Xin Wang, Giulio Zhou, Michael J. Franklin, Joseph E. Gonzalez, Ion Stoica",
        "Clipper: A Low-Latency Online Prediction Serving System", "NSDI", 2017, "1612.03079"
    ),
    "evans2016": _paper("misc", "Richard Evans, Jim Gao", "DeepMind AI Reduces Google Data Centre Cooling Bill by 40%", "DeepMind", 2016),
    "kddi2026": _paper("misc", "STech Times", "KDDI's Osaka AI Data Center Turns Liquid Cooling Into a Power Test", "stechtimes.com", 2026),
    "bellman1957": _paper("book", "Richard Bellman", "Dynamic Programming", "Princeton University Press", 1957),
    # the place and the hour
    "wiesner2021": _paper(
        _TALK, "Philipp Wiesner, Ilja Behnke, Dominik Scheinert, Kordian Gontarska, Lauritz Thamsen",
        "Let's Wait Awhile: How Temporal Workload Shifting Can Reduce Carbon Emissions in the Cloud", "Middleware", 2021, "2110.13234"
    ),
    "souza2023": _paper(
        _TALK, "Abel Souza, Noman Bashir, Jorge Murillo, Walid Hanafy, Qianlin Liang, David Irwin, Prashant Shenoy",
        "Ecovisor: A Virtual Energy System for Carbon-Efficient Applications", "ASPLOS", 2023, "2210.04951"
    ),
    "hanafy2024": _paper(
        _TALK, "Walid A. Hanafy, Qianlin Liang, Noman Bashir, Abel Souza, David Irwin, Prashant Shenoy",
        "Going Green for Less Green: Optimizing the Cost of Reducing Cloud Carbon Emissions", "ASPLOS", 2024
    ),
    "sukprasert2024": _paper(
        _TALK, "Thanathorn Sukprasert, Abel Souza, Noman Bashir, David Irwin, Prashant Shenoy",
        "On the Limitations of Carbon-Aware Temporal and Spatial Workload Shifting in the Cloud", "EuroSys", 2024, "2306.06502"
    ),
    "ahuja1993": _paper(
        "book", "Ravindra K. Ahuja, Thomas L. Magnanti, James B. Orlin", "Network Flows: Theory, Algorithms, and Applications", "Prentice Hall", 1993
    ),
    "huangfu2018": _paper(
        _PRINT, "Qi Huangfu, J. A. Julian Hall", "Parallelizing the Dual Revised Simplex Method", "Mathematical Programming Computation 10(1)", 2018
    ),
    "geoffrion1974": _paper(
        _PRINT, "Arthur M. Geoffrion", "Lagrangean Relaxation for Integer Programming", "Mathematical Programming Studies 2", 1974
    ),
    "held1971": _paper(
        _PRINT, "Michael Held, Richard M. Karp", "The Traveling-Salesman Problem and Minimum Spanning Trees: Part II", "Mathematical Programming 1",
        1971
    ),
    "wentges1997": _paper(
        _PRINT, "Paul Wentges", "Weighted Dantzig-Wolfe Decomposition for Linear Mixed-Integer Programming",
        "International Transactions in Operational Research 4(2)", 1997
    ),
    "schrimpf2000": _paper(
        _PRINT, "Gerhard Schrimpf, Johannes Schneider, Hermann Stamm-Wilbrandt, Gunter Dueck",
        "Record Breaking Optimization Results Using the Ruin and Recreate Principle", "Journal of Computational Physics 159(2)", 2000
    ),
    "dertouzos1989": _paper(
        _PRINT, "Michael L. Dertouzos, Aloysius K. Mok", "Multiprocessor On-Line Scheduling of Hard-Real-Time Tasks",
        "IEEE Transactions on Software Engineering 15(12)", 1989
    ),
    "efron1975": _paper(
        _PRINT, "Bradley Efron, Carl Morris", "Data Analysis Using Stein's Estimator and Its Generalizations",
        "Journal of the American Statistical Association 70(350)", 1975
    ),
    # the tensor program: fusion, placement, order
    "zhou2020go": _paper(
        _TALK,
        "Yanqi Zhou, Sudip Roy, Amirali Abdolrashidi, Daniel Wong, Peter Ma, Qiumin Xu, Hanxiao Liu, Phitchaya Mangpo Phothilimthana, Shen Wang, "
        "Anna Goldie, Azalia Mirhoseini, James Laudon",
        "Transferable Graph Optimizers for ML Compilers",
        "NeurIPS",
        2020,
        "2010.12438",
    ),
    "mirhoseini2018hdp": _paper(
        _TALK,
        "Azalia Mirhoseini, Anna Goldie, Hieu Pham, Benoit Steiner, Quoc V. Le, Jeff Dean",
        "A Hierarchical Model for Device Placement",
        "ICLR",
        2018,
    ),
    "rice1976": _paper(_PRINT, "John R. Rice", "The Algorithm Selection Problem", "Advances in Computers 15", 1976),
    "huberman1997": _paper(
        _PRINT, "Bernardo A. Huberman, Rajan M. Lukose, Tad Hogg", "An Economics Approach to Hard Computational Problems", "Science 275(5296)", 1997
    ),
    "sinnen2005": _paper(
        _PRINT, "Oliver Sinnen, Leonel A. Sousa", "Communication Contention in Task Scheduling",
        "IEEE Transactions on Parallel and Distributed Systems 16(6)", 2005,
    ),
    "valls2005": _paper(
        _PRINT, "Vicente Valls, Francisco Ballestin, Sacramento Quintanilla", "Justification and RCPSP: A Technique That Pays",
        "European Journal of Operational Research 165(2)", 2005,
    ),
    "topcuoglu2002": _paper(
        _PRINT,
        "Haluk Topcuoglu, Salim Hariri, Min-You Wu",
        "Performance-Effective and Low-Complexity Task Scheduling for Heterogeneous Computing",
        "IEEE Transactions on Parallel and Distributed Systems 13(3)",
        2002,
    ),
    "arabnejad2014": _paper(
        _PRINT,
        "Hamid Arabnejad, Jorge G. Barbosa",
        "List Scheduling Algorithm for Heterogeneous Systems by an Optimistic Cost Table",
        "IEEE Transactions on Parallel and Distributed Systems 25(3)",
        2014,
    ),
    "karypis1998": _paper(
        _PRINT,
        "George Karypis, Vipin Kumar",
        "A Fast and High Quality Multilevel Scheme for Partitioning Irregular Graphs",
        "SIAM Journal on Scientific Computing 20(1)",
        1998,
    ),
    "tarnawski2020": _paper(
        _TALK, "Jakub Tarnawski, Amar Phanishayee, Nikhil R. Devanur, Divya Mahajan, Fanny Nina Paravecino",
        "Efficient Algorithms for Device Placement of DNN Graph Operators", "NeurIPS", 2020
    ),
    "narayanan2019": _paper(
        _TALK, "Deepak Narayanan, Aaron Harlap, Amar Phanishayee, Vivek Seshadri, Nikhil R. Devanur, Gregory R. Ganger, Phillip B. Gibbons, "
        "Matei Zaharia", "PipeDream: Generalized Pipeline Parallelism for DNN Training", "SOSP", 2019
    ),
    "radul2023": _paper(
        _PRINT,
        "Alexey Radul, Adam Paszke, Roy Frostig, Matthew J. Johnson, Dougal Maclaurin",
        "You Only Linearize Once: Tangents Transpose to Gradients",
        "Proceedings of the ACM on Programming Languages 7 (POPL)",
        2023,
        "2204.10923",
    ),
    "kirkpatrick1983": _paper(
        _PRINT,
        "Scott Kirkpatrick, C. Daniel Gelatt, Mario P. Vecchi",
        "Optimization by Simulated Annealing",
        "Science 220",
        1983,
    ),
    "shaw1998": _paper(
        _TALK,
        "Paul Shaw",
        "Using Constraint Programming and Local Search Methods to Solve Vehicle Routing Problems",
        "CP",
        1998,
    ),
    "perron2023": _paper(
        _TALK,
        "Laurent Perron, Frédéric Didier, Steven Gay",
        "The CP-SAT-LP Solver",
        "CP",
        2023,
    ),
    # where buffers stand in memory
    "pisarchyk2020": _paper("misc", "Yury Pisarchyk, Juhyun Lee", "Efficient Memory Management for Deep Neural Net Inference", "arXiv", 2020,
                            "2001.03288"),
    "joslin1999": _paper(_PRINT, "David E. Joslin, David P. Clements", "Squeaky Wheel Optimization",
                         "Journal of Artificial Intelligence Research 10", 1999),
    # what is stored and what is computed again
    "griewank2008": _paper("book", "Andreas Griewank, Andrea Walther", "Evaluating Derivatives", "SIAM", 2008),
    "sethi1975": _paper(_PRINT, "Ravi Sethi", "Complete Register Allocation Problems", "SIAM Journal on Computing 4(3)", 1975),
    "hart1968": _paper(
        _PRINT, "Peter E. Hart, Nils J. Nilsson, Bertram Raphael", "A Formal Basis for the Heuristic Determination of Minimum Cost Paths",
        "IEEE Transactions on Systems Science and Cybernetics 4(2)", 1968
    ),
    "dantzig1957": _paper(_PRINT, "George B. Dantzig", "Discrete-Variable Extremum Problems", "Operations Research 5(2)", 1957),
    "belady1966": _paper(
        _PRINT, "Laszlo A. Belady", "A Study of Replacement Algorithms for a Virtual-Storage Computer", "IBM Systems Journal 5(2)", 1966
    ),
    "chen2016": _paper(
        "misc", "Tianqi Chen, Bing Xu, Chiyuan Zhang, Carlos Guestrin", "Training Deep Nets with Sublinear Memory Cost", "arXiv", 2016, "1604.06174"
    ),
    "jain2020": _paper(
        _TALK, "Paras Jain, Ajay Jain, Aniruddha Nrusimha, Amir Gholami, Pieter Abbeel, Kurt Keutzer, Ion Stoica, Joseph E. Gonzalez",
        "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", "MLSys", 2020, "1910.02653"
    ),
    "kirisame2021": _paper(
        _TALK, "Marisa Kirisame, Steven Lyubomirsky, Altan Haan, Jennifer Brennan, Mike He, Jared Roesch, Tianqi Chen, Zachary Tatlock",
        "Dynamic Tensor Rematerialization", "ICLR", 2021, "2006.09616"
    ),
    "bartan2023": _paper(
        _TALK, "Burak Bartan, Haoming Li, Harris Teague, Christopher Lott, Bistra Dilkina",
        "Moccasin: Efficient Tensor Rematerialization for Neural Networks", "ICML", 2023
    ),
    "moffitt2023": _paper(_TALK, "Michael D. Moffitt", "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine Learning",
                          "ASPLOS", 2023),
    "maas2023": _paper(_TALK, "Martin Maas, Ulysse Beaugnon, Arun Chauhan, Berkin Ilbeyi",
                       "TelaMalloc: Efficient On-Chip Memory Allocation for Production Machine Learning Accelerators", "ASPLOS", 2023),
    "luby1993": _paper(_PRINT, "Michael Luby, Alistair Sinclair, David Zuckerman", "Optimal Speedup of Las Vegas Algorithms",
                       "Information Processing Letters 47", 1993),
    "gomes2000": _paper(_PRINT, "Carla P. Gomes, Bart Selman, Nuno Crato, Henry Kautz",
                        "Heavy-Tailed Phenomena in Satisfiability and Constraint Satisfaction Problems", "Journal of Automated Reasoning 24", 2000),
    "friedman2001": _paper(_PRINT, "Jerome H. Friedman", "Greedy Function Approximation: A Gradient Boosting Machine", "The Annals of Statistics 29",
                           2001),
}


def paper(key: str) -> Paper:
    """The paper under `key`. Raises InputError with the nearest keys where there is none."""
    if key not in BIBLIOGRAPHY:
        near = difflib.get_close_matches(key, BIBLIOGRAPHY, n=3, cutoff=0.4)
        raise InputError(f"{key!r} is not in the bibliography.", f"Did you mean {' or '.join(near)}?" if near else "See `fourfold cite --all`.")
    return BIBLIOGRAPHY[key]


def bibtex(keys: Iterable[str]) -> str:
    """The BibTeX of `keys`, each once, in order."""
    return "\n\n".join(paper(key).bibtex(key) for key in dict.fromkeys(keys))
