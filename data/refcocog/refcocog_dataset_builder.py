"""RefCOCOg for TFDS, from the files of the REFER layout."""

from data.refer_dataset import ReferBuilder, ReferConfig


class Builder(ReferBuilder):
    """RefCOCOg: images with the expressions that refer to something in them."""

    FOLDER = "refcocog"
    BUILDER_CONFIGS = (ReferConfig("umd"), ReferConfig("google"))
