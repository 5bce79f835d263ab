# docker buildx bake              the worker; weights are downloaded when it starts
# docker buildx bake gemma-2-2b   the worker with a model's weights inside; HF_TOKEN from the environment
# docker buildx bake models       one image a model

variable "IMAGE" {
  default = "attribution-worker"
}

variable "TAG" {
  default = "latest"
}

variable "REVISION" {
  default = "unknown"
}

group "default" {
  targets = ["worker"]
}

group "models" {
  targets = ["gemma-2-2b", "gemma-2-2b-clt", "qwen3-4b", "llama-3-2-1b"]
}

target "_worker" {
  context   = "."
  platforms = ["linux/amd64"]
  args = {
    REVISION = REVISION
  }
}

target "worker" {
  inherits = ["_worker"]
  target   = "worker"
  tags     = ["${IMAGE}:${TAG}"]
}

target "_baked" {
  inherits = ["_worker"]
  target   = "baked"
  secret   = ["id=hf_token,env=HF_TOKEN"]
}

target "gemma-2-2b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-2-2b"]
  args = {
    MODEL_ID       = "google/gemma-2-2b"
    TRANSCODER_SET = "mwhanna/gemma-scope-transcoders"
  }
}

target "gemma-2-2b-clt" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-2-2b-clt"]
  args = {
    MODEL_ID       = "google/gemma-2-2b"
    TRANSCODER_SET = "mntss/clt-gemma-2-2b-2.5M"
  }
}

target "qwen3-4b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-4b"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-4B"
    TRANSCODER_SET = "mwhanna/qwen3-4b-transcoders"
  }
}

target "llama-3-2-1b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-llama-3-2-1b"]
  args = {
    MODEL_ID       = "meta-llama/Llama-3.2-1B"
    TRANSCODER_SET = "mntss/transcoder-Llama-3.2-1B"
  }
}
