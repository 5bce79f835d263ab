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
    "gemma-2-2b-npz",
    "gemma-2-2b-clt-2-5m",
    "gemma-2-2b-clt-426k",
    "qwen3-0-6b",
    "qwen3-1-7b",
    "qwen3-1-7b-complete",
    "qwen3-1-7b-complete-32x",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-14b",
    "llama-3-2-1b",
    "llama-3-2-1b-clt-524k",
    "llama-3-1-8b-instruct",
    "gemma-3-270m",
    "gemma-3-270m-clt",
    "gemma-3-270m-it",
    "gemma-3-1b-pt",
    "gemma-3-1b-it",
    "gemma-3-4b-pt",
    "gemma-3-4b-it",
    "gemma-3-12b-pt",
    "gemma-3-12b-it",
    "gemma-3-27b-it",
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

target "gemma-2-2b-npz" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-2-2b-npz"]
  args = {
    MODEL_ID       = "google/gemma-2-2b"
    TRANSCODER_SET = "mntss/gemma-scope-transcoders"
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

target "qwen3-0-6b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-0-6b"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-0.6B"
    TRANSCODER_SET = "mwhanna/qwen3-0.6b-transcoders-lowl0"
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

target "qwen3-1-7b-complete" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-1-7b-complete"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-1.7B"
    TRANSCODER_SET = "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64"
  }
}

target "qwen3-1-7b-complete-32x" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-1-7b-complete-32x"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-1.7B"
    TRANSCODER_SET = "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/32x/k64"
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

target "qwen3-8b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-8b"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-8B"
    TRANSCODER_SET = "mwhanna/qwen3-8b-transcoders"
  }
}

target "qwen3-14b" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-qwen3-14b"]
  args = {
    MODEL_ID       = "Qwen/Qwen3-14B"
    TRANSCODER_SET = "mwhanna/qwen3-14b-transcoders-lowl0"
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

target "llama-3-2-1b-clt-524k" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-llama-3-2-1b-clt-524k"]
  args = {
    MODEL_ID       = "meta-llama/Llama-3.2-1B"
    TRANSCODER_SET = "mntss/clt-llama-3.2-1b-524k"
  }
}

target "llama-3-1-8b-instruct" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-llama-3-1-8b-instruct"]
  args = {
    MODEL_ID       = "meta-llama/Llama-3.1-8B-Instruct"
    TRANSCODER_SET = "facebook/crv-8b-instruct-transcoders"
  }
}

target "gemma-3-270m" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-270m"]
  args = {
    MODEL_ID       = "google/gemma-3-270m"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small"
  }
}

target "gemma-3-270m-clt" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-270m-clt"]
  args = {
    MODEL_ID       = "google/gemma-3-270m"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-270m-pt/clt/width_262k_l0_medium_affine"
  }
}

target "gemma-3-270m-it" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-270m-it"]
  args = {
    MODEL_ID       = "google/gemma-3-270m-it"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-270m-it/transcoder_all/width_16k_l0_big"
  }
}

target "gemma-3-1b-pt" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-1b-pt"]
  args = {
    MODEL_ID       = "google/gemma-3-1b-pt"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-1b-pt/transcoder_all/width_16k_l0_small_affine"
  }
}

target "gemma-3-1b-it" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-1b-it"]
  args = {
    MODEL_ID       = "google/gemma-3-1b-it"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-1b-it/transcoder_all/width_16k_l0_small_affine"
  }
}

target "gemma-3-4b-pt" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-4b-pt"]
  args = {
    MODEL_ID       = "google/gemma-3-4b-pt"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-4b-pt/transcoder_all/width_16k_l0_small_affine"
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

target "gemma-3-12b-pt" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-12b-pt"]
  args = {
    MODEL_ID       = "google/gemma-3-12b-pt"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-12b-pt/transcoder_all/width_16k_l0_small_affine"
  }
}

target "gemma-3-12b-it" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-12b-it"]
  args = {
    MODEL_ID       = "google/gemma-3-12b-it"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-12b-it/transcoder_all/width_16k_l0_small_affine"
  }
}

target "gemma-3-27b-it" {
  inherits = ["_baked"]
  tags     = ["${IMAGE}:${TAG}-gemma-3-27b-it"]
  args = {
    MODEL_ID       = "google/gemma-3-27b-it"
    TRANSCODER_SET = "mwhanna/gemma-scope-2-27b-it/transcoder_all/width_16k_l0_small_affine"
  }
}
