"""Only how, on what, where or when something runs: each folder is a question, each file in it a technique. What they owe is validity."""
