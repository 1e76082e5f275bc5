"""The whole configuration with its defaults; every file in configs/ starts from here and changes what differs."""

from __future__ import annotations

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """Returns every field with its default: Swin-Base and BERT-base at 480 px, the recipe of the LAVT family."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 53_000  # optimizer steps; 0 takes as many as config.epochs needs
    config.epochs = 0.0  # what an epoch shows is said by config.input.sampling; only read where config.steps is 0
    config.batch_size = 32  # pictures per step, over all devices
    config.dtype = "float32"  # of the computation: float32 | bfloat16; parameters stay float32
    config.remat = "none"  # none | dense | blocks: what is computed twice to save memory; see models/remat.py

    config.input = ConfigDict()
    config.input.source = ConfigDict({"name": ""})  # a name in input/sources.py and the arguments of that source
    config.input.train_split = "train"
    config.input.image_size = (480, 480)  # height, width in pixels
    config.input.expressions_per_image = 4  # K
    config.input.sampling = "image"  # image | sentence | referent: what an epoch shows; see input/sampling.py
    config.input.workers = 0  # input processes; 0 reads in threads of the main process

    config.input.augment = ConfigDict()  # of training pictures, all off; see input/augment.py
    config.input.augment.flip = 0.0  # probability of a mirrored picture with left and right exchanged in its sentences
    config.input.augment.crop = 0.0  # probability of a crop that keeps whole whatever is referred to
    config.input.augment.crop_smallest = 0.6  # share of each side that a crop keeps at least
    config.input.augment.hide_patches = 0.0  # largest share of a picture's patches that is replaced by the mean
    config.input.augment.patch = 32  # pixels, the side of such a patch
    config.input.augment.hide_words = 0.0  # share of the words that is replaced by [MASK]

    config.vision = ConfigDict()  # Swin; see models/swin.py
    config.vision.embed_dim = 128
    config.vision.depths = (2, 2, 18, 2)
    config.vision.num_heads = (4, 8, 16, 32)
    config.vision.window_size = 12
    config.vision.drop_path_rate = 0.3
    config.vision.mask_padding = True  # False: padding to whole windows is attended to, as published code does
    config.vision.pretrained = ""  # weights to begin from: a file, a folder or a name on the Hugging Face Hub

    config.text = ConfigDict()  # BERT; see models/bert.py
    config.text.pretrained = ""  # as config.vision.pretrained
    config.text.vocab = ""  # a BERT vocab.txt; empty: that beside the pretrained weights, or that of the source
    config.text.max_tokens = 20  # L, [CLS] and [SEP] included
    config.text.vocab_size = 30_522
    config.text.hidden_size = 768
    config.text.num_layers = 12
    config.text.num_heads = 12
    config.text.intermediate_size = 3072
    config.text.max_positions = 512
    config.text.dropout_rate = 0.1

    config.fusion = ConfigDict()  # S2RM; see models/s2rm.py
    config.fusion.width = 512
    config.fusion.recurrent_width = 256
    config.fusion.num_heads = 8
    config.fusion.language = "words"  # words | sentence (nothing is distributed: the same at every position)
    config.fusion.mode = "s2rm"  # s2rm | sum | product | concat | attention; see models/simpler_fusion.py
    config.fusion.recurrence = "gated"  # gated | linear | none
    config.fusion.rotations = (0, 90, 180, 270)  # degrees; the scanning directions
    config.fusion.pairs = ("language_parses_vision", "vision_parses_language")
    config.fusion.balance = "position"  # position | channel | mean
    config.fusion.residual = "both"  # both | vision; what the fused map keeps beside what was parsed

    config.decoder = ConfigDict()  # CASG; see models/casg.py
    config.decoder.widths = (64, 128, 256, 256)  # D_1 .. D_4, from fine to coarse
    config.decoder.guidance = "full"  # full | maps | none (a plain FPN)
    config.decoder.semantics = ("sentence", "stages")  # what guides: the sentence, the referent as seen so far
    config.decoder.no_target_width = 0  # of the head that says "nothing here" (models/no_target.py); 0 has no head

    config.loss = ConfigDict()
    config.loss.kind = "bce_dice"  # bce_dice | weighted_ce (0.9 background, 1.1 foreground, as the LAVT family)
    config.loss.coarse_weight = 0.0  # weight of the same loss on each coarser mask
    config.loss.no_target_weight = 0.1  # weight of the loss of the head that says "nothing here", where there is one

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.learning_rate = 5e-5
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0  # global norm; 0 does not clip
    config.optimizer.schedule = "polynomial"  # polynomial | cosine
    config.optimizer.power = 0.9  # of the polynomial
    config.optimizer.warmup_steps = 0
    config.optimizer.accumulate = 1  # microbatches per step; must divide batch_size
    config.optimizer.ema_decay = 0.0  # 0 keeps no average; else evaluation uses the averaged parameters
    # Groups are regular expressions searched in a parameter path such as "vision/stage3_block0/attention/qkv/kernel".
    config.optimizer.multipliers = ()  # ((pattern, factor), ...) on the learning rate; the first match counts
    config.optimizer.no_decay = ("bias$", "norm", "scale$", "relative_position_bias_table", "embeddings")
    config.optimizer.frozen = ()  # parameters that are not trained

    config.eval = ConfigDict()
    config.eval.split = "val"
    config.eval.every = 2000  # steps; 0 never evaluates during training
    config.eval.batch_size = 16  # pictures
    config.eval.expressions_per_image = 0  # K of an evaluation; 0 takes that of the training
    config.eval.limit = 0  # pictures; 0 takes the whole split
    config.eval.protocol = "original"  # how masks become numbers; see evaluation/protocols.py
    config.eval.metric = "mean_iou"  # the metric by which the best checkpoint is chosen

    config.mesh = ConfigDict()  # how the devices share the work; batches are always split over all of them
    config.mesh.fsdp = 1  # devices that keep one state of training between them; 1: every device holds all of it
    config.mesh.step = "jit"  # jit: the compiler places the communication | shard_map: we do (training/gradient.py)

    config.compilation_cache = ""  # where compiled programs are kept: a folder; empty: in the workdir; off: nowhere
    config.tensorboard = True  # also write metrics as TensorBoard files
    config.wandb_project = ""  # on Weights & Biases, to receive the metrics; empty: none; see training/wandb_run.py
    config.checkpoint_every = 1000  # steps
    config.log_every = 50  # steps
    return config
