# docker buildx bake [slim|full|cuda13]; HF_TOKEN in the environment is passed as a build secret.
variable "REGISTRY" { default = "trellis-runtime" }
variable "VERSION" { default = "dev" }  # `make image` gives trellis_runtime.__version__
variable "FETCH_OPTIONS" { default = "" }
variable "TORCH_CUDA_ARCH_LIST" { default = "8.0;8.6;8.9;9.0;10.0;12.0" }

group "default" { targets = ["slim"] }

target "slim" {
  target = "slim"
  tags   = ["${REGISTRY}:${VERSION}-slim", "${REGISTRY}:latest"]
  args = {
    CUDA                 = "12.8.1"
    TOOLKIT              = "cuda12"
    TORCH_CUDA_ARCH_LIST = TORCH_CUDA_ARCH_LIST
  }
}

target "cuda13" {
  inherits = ["slim"]
  tags     = ["${REGISTRY}:${VERSION}-slim-cuda13"]
  args     = { CUDA = "13.0.2", TOOLKIT = "cuda13" }
}

target "full" {
  inherits = ["slim"]
  target   = "full"
  tags     = ["${REGISTRY}:${VERSION}"]
  args     = { FETCH_OPTIONS = FETCH_OPTIONS }
  secret   = ["id=HF_TOKEN,env=HF_TOKEN"]
}
