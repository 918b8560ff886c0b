"""What is asked and answered over OpenAI's interface, as types. The published description is generated from them."""
