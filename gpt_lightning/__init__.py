"""gpt_lightning: train a GPT from one YAML file, on PyTorch Lightning."""

__version__ = "0.1.0"
