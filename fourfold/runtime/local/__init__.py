"""What carries out a plan: regions as calls (`region`, `onnx`), engines that build them (`build`), one process a device (`pool`, `serve`)."""
