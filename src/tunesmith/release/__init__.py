"""From adapter to merged model and GGUF."""
