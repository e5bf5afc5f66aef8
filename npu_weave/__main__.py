"""`python -m npu_weave` is `npu-weave`."""

from npu_weave.cli.main import app

if __name__ == "__main__":
    app(prog_name="npu-weave")
