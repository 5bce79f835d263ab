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
  targets = [
    "gemma-2-2b",
    "gemma-2-2b-clt-2-5m",
    "gemma-2-2b-clt-426k",
    "qwen3-4b",
    "qwen3-1-7b",
    "llama-3-2-1b",
    "gemma-3-4b-it",
  ]
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

target "gemma-2-2b-clt-2-5m" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-2-2b-clt-2-5m"]
  args = {
    MODEL_ID       = "google/gemma-2-2b"
    TRANSCODER_SET = "mntss/clt-gemma-2-2b-2.5M"
  }
}

target "gemma-2-2b-clt-426k" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-2-2b-clt-426k"]
  args = {
    MODEL_ID       = "google/gemma-2-2b"
    TRANSCODER_SET = "mntss/clt-gemma-2-2b-426k"
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

target "qwen3-1-7b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-1-7b"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-1.7B"
    TRANSCODER_SET = "mwhanna/qwen3-1.7b-transcoders-lowl0"
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

target "gemma-3-4b-it" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-4b-it"]
  args = {
    MODEL_ID       = "google/gemma-3-4b-it"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-4b-it/transcoder_all/width_262k_l0_small_affine"
  }
}
