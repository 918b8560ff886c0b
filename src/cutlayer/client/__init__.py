"""The trusted side: prompt in, hidden states out, hidden states in, text out."""
