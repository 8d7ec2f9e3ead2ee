"""The servers that `serve.py` measures beside ours, each as a process: python _serve_peers.py KIND FOLDER PORT. A request is {"text": …}.

`original`: FastAPI and transformers on the original, as its users write it. `fastapi`, `litserve`, `bentoml`: the cheaper model in these.
"""

import os
import sys

KIND, FOLDER, PORT = sys.argv[1:4] if __name__ == "__main__" else (os.environ["KIND"], os.environ["FOLDER"], os.environ["PORT"])
WORKERS, BATCH = 2, 8
os.environ.update(KIND=KIND, FOLDER=FOLDER, PORT=PORT)


def original() -> None:
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    class Question(BaseModel):
        text: str

    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
    app = FastAPI()

    @app.post("/predict")
    def predict(question: Question) -> dict[str, str]:
        with torch.inference_mode():
            logits = model(**tokenizer(question.text, truncation=True, return_tensors="pt")).logits
        return {"label": model.config.id2label[int(logits.argmax())]}

    uvicorn.run(app, port=int(PORT), log_level="error")


def fastapi() -> None:
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    import fourfold

    class Question(BaseModel):
        text: str

    model, app = fourfold.load(FOLDER), FastAPI()

    @app.post("/predict")
    def predict(question: Question) -> dict[str, str]:
        return {"label": model.predict([question.text])[0]}

    uvicorn.run(app, port=int(PORT), log_level="error")


if KIND == "litserve":
    import litserve as ls

    class LitCheap(ls.LitAPI):                                         # of the module: LitServe pickles it into its workers
        def setup(self, device: str) -> None:
            import fourfold

            self.model = fourfold.load(FOLDER)

        def decode_request(self, request: dict[str, str]) -> str:
            return request["text"]

        def predict(self, x: list[str]) -> list[str]:
            return list(self.model.predict(list(x)))

        def encode_response(self, output: str) -> dict[str, str]:
            return {"label": output}

    def litserve() -> None:
        server = ls.LitServer(LitCheap(max_batch_size=BATCH, batch_timeout=0.002), accelerator="cpu", workers_per_device=WORKERS)
        server.run(port=int(PORT), log_level="error", generate_client_file=False)


if KIND == "bentoml":
    import bentoml

    @bentoml.service(workers=WORKERS, traffic={"timeout": 60})
    class Cheap:
        def __init__(self) -> None:
            import fourfold

            self.model = fourfold.load(FOLDER)

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
        def predict(self, text: list[str]) -> list[str]:
            return list(self.model.predict(list(text)))


if __name__ == "__main__":
    if KIND == "bentoml":
        os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "_serve_peers:Cheap", "--port", PORT, "--working-dir",
                                  os.path.dirname(os.path.abspath(__file__))])
    globals()[KIND]()
