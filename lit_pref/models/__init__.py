"""Models and tokenizers: loading, chat templates, prefix sharing, generation, saving."""
