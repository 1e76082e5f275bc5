"""RefCOCO for TFDS, from the files of the REFER layout."""

from data.refer_dataset import ReferBuilder, ReferConfig


class Builder(ReferBuilder):
    """RefCOCO: images with the expressions that refer to something in them."""

    FOLDER = "refcoco"
    BUILDER_CONFIGS = (ReferConfig("unc"), ReferConfig("google"))
