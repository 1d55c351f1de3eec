"""Checkpoints of another model, and what goes wrong with a network in use."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, run

ENTRIES = (
    Entry(
        id="TRITON-CPU-POINTER",
        title="A kernel for the GPU was given a tensor on the CPU.",
        cause="Most often a weight that was moved out to save memory.",
        fixes=(
            do("In turbodiffusion this is a bug: please report it."),
            run("Collect what the report needs.", "turbodiffusion bugreport"),
            do("In other software, switch offloading off for that module."),
        ),
        patterns=(r"Pointer argument \(at \d{1,3}\) cannot be accessed from Triton",),
        seen=(
            ("ValueError: Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)"),
        ),
        severity="major",
        stage="run",
        platforms="linux windows",
        relation="R",
        probes="P16",
    ),
    Entry(
        id="CKPT-QUANT-FLAG-MISMATCH",
        title="A quantised network was given a plain checkpoint, or the reverse.",
        cause="Missing int8 tensors: the file is not quantised. Unexpected ones: it is.",
        fixes=(
            run(
                "turbodiffusion reads it from the file, so no flag can be wrong.",
                "turbodiffusion inspect FILE",
            ),
            do(
                "The released scripts need their quantisation flag with -quant files, and "
                "only with those."
            ),
        ),
        patterns=(
            r"Missing key\(s\) in state_dict:.{0,200}int8_weight",
            r"Unexpected key\(s\) in state_dict:.{0,200}int8_weight",
        ),
        seen=(
            (
                "Error(s) in loading state_dict for WanModel: Missing key(s) in state_dict: "
                '"blocks.0._checkpoint_wrapped_module.self_attn.q.int8_weight", '
                '"blocks.0._checkpoint_wrapped_module.self_attn.q.scale"'
            ),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P22",
    ),
    Entry(
        id="CKPT-ATTENTION-MISMATCH",
        title="A checkpoint was trained with another kind of attention.",
        cause=(
            "proj_l is the learned part of sparse-linear attention. A plain network has no "
            "place for it, and a plain file does not hold it."
        ),
        fixes=(
            run("turbodiffusion reads the kind from the file.", "turbodiffusion inspect FILE"),
            do(
                "In the released scripts, choose the attention type sla or sagesla for "
                "TurboWan files, original for plain ones."
            ),
        ),
        patterns=(
            r"Missing key\(s\) in state_dict:.{0,300}proj_l",
            r"Unexpected key\(s\) in state_dict:.{0,300}proj_l",
        ),
        seen=(
            (
                "Error(s) in loading state_dict for WanModel: Unexpected key(s) in state_dict: "
                '"blocks.0.self_attn.attn_op.local_attn.proj_l.weight"'
            ),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P22",
    ),
    Entry(
        id="CKPT-SIZE-MISMATCH",
        title="A checkpoint belongs to another model.",
        cause=(
            "Widths tell which: 1536 is the 1.3B model, 5120 the 14B and A14B ones; 16 "
            "input channels are text to video, 36 are image to video of Wan2.2."
        ),
        fixes=(run("See which model the file is.", "turbodiffusion inspect FILE"),),
        patterns=(r"size mismatch for (?P<tensor>[\w.]{1,200}): copying a param with shape",),
        seen=(
            (
                "size mismatch for "
                "blocks.20._checkpoint_wrapped_module.cross_attn.norm_q.weight: copying a param "
                "with shape torch.Size([1536"
            ),
            (
                "size mismatch for model.diffusion_model.input_blocks.5.1.proj_out.weight: "
                "copying a param with shape torch.Size([640, 640]) from checkpoint, the shape "
                "in current model is torch.Size([640, 640, 1, 1])."
            ),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P22",
    ),
    Entry(
        id="STATE-DICT-GENERIC",
        title="A checkpoint does not fit the network.",
        cause=(
            "Other names (wrapper prefixes such as net. and module., diffusers' naming) or "
            "another model."
        ),
        fixes=(
            run(
                "turbodiffusion knows the usual namings; see what the file is.",
                "turbodiffusion inspect FILE",
            ),
        ),
        patterns=(r"Error\(s\) in loading state_dict for (?P<network>\w{1,80})",),
        seen=("RuntimeError: Error(s) in loading state_dict for UNetModel:",),
        rank=3,
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P22",
    ),
    Entry(
        id="CKPT-CUDA-TENSORS-ON-CPU",
        title="A checkpoint saved on a GPU is loaded where CUDA is not available.",
        cause=("torch wants to put its tensors back where they were, and this torch sees no GPU."),
        fixes=(
            run("See why there is no GPU.", "turbodiffusion doctor"),
            do(
                "turbodiffusion always loads to the CPU first, so the message is another program's."
            ),
        ),
        patterns=(r"Attempting to deserialize object on (a )?CUDA device",),
        seen=(
            (
                "RuntimeError: Attempting to deserialize object on a CUDA device but "
                "torch.cuda.is_available() is False."
            ),
        ),
        severity="major",
        stage="model-load",
        platforms="linux windows",
        relation="R",
        probes="P05 P21",
    ),
    Entry(
        id="CKPT-FILE-NOT-FOUND",
        title="A checkpoint is not where it was looked for.",
        cause=(
            "The path or the name is wrong, or the path is relative and the program started "
            "elsewhere."
        ),
        fixes=(
            run(
                "Models have names; this lists them and says where they are.",
                "turbodiffusion models",
            ),
            run("Fetch one.", "turbodiffusion download MODEL"),
        ),
        patterns=(
            (
                r"No such file or directory: '(?P<file>[^']{0,400}\.(pth|pt|safetensors|bin"
                r"|ckpt))'"
            ),
        ),
        seen=(
            (
                "FileNotFoundError: [Errno 2] No such file or directory: "
                "'checkpoints/Wan2.2_VAE.pth'"
            ),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P21",
    ),
    Entry(
        id="DEVICE-MISMATCH",
        title="Two parts of a computation are on different devices.",
        cause="One module, LoRA or input stayed on the CPU or on another GPU.",
        fixes=(
            do("In turbodiffusion this is a bug: please report it."),
            run("Collect what the report needs.", "turbodiffusion bugreport"),
            do("In other software, switch offloading off, or move the tensor that is named."),
        ),
        patterns=(
            r"Expected all tensors to be on the same device, but found at least two devices",
        ),
        seen=(
            (
                "RuntimeError: Expected all tensors to be on the same device, but found at "
                "least two devices, cuda:0 and cpu!"
            ),
        ),
        stage="run",
        platforms="linux windows",
        relation="R",
        probes="P16",
    ),
    Entry(
        id="CUDA-FORK",
        title="CUDA was used before the process was copied.",
        cause="A forked process cannot use the CUDA of its parent.",
        fixes=(
            do("Start worker processes with `spawn`: multiprocessing.set_start_method('spawn')."),
        ),
        patterns=(r"Cannot re-initialize CUDA in forked subprocess",),
        seen=(
            (
                "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with "
                "multiprocessing, you must use the 'spawn' start method"
            ),
        ),
        severity="major",
        stage="run",
        platforms="linux",
        relation="R",
    ),
    Entry(
        id="VIDEO-WRITER-MISSING",
        title="There is nothing to write a video with.",
        cause="Neither imageio-ffmpeg nor PyAV is installed where the program runs.",
        fixes=(
            run(
                "turbodiffusion writes with PyAV and checks for it first.",
                "python -m pip install av",
            ),
            run("For other software.", "python -m pip install 'imageio[ffmpeg]'"),
        ),
        patterns=(
            r"Could not find a backend to open .{0,200} with iomode",
            r"No ffmpeg exe could be found",
        ),
        seen=(
            (
                "OSError: Could not find a backend to open `output/test_video.mp4`` with iomode "
                "`w?`."
            ),
        ),
        severity="major",
        stage="run",
        platforms="linux windows",
        relation="P",
        probes="P27",
    ),
)
