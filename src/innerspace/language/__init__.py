"""Language models and text: any Hugging Face decoder, corpora, the divergence of next-token distributions."""
