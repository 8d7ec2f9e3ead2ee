"""Where each piece of a tensor lies on a mesh of devices: meshes, specs, collectives, the rules of operators, and how few annotations become all."""
