"""The equations of S2RM and CASG in NumPy float64, written from docs/network.md alone.

Functions take one image and one expression, without batch axes. Parameters are nested dictionaries of arrays, named as
in the column on the right of the page. Nothing here imports the network.
"""

import numpy as np

PAIRS = ("language_parses_vision", "vision_parses_language")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return p["scale"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + p["bias"]


def place(rotation, j, mu, h, w):
    """Return the row and the column of position μ of slice j."""
    return {0: (j, mu), 90: (mu, w - 1 - j), 180: (h - 1 - j, w - 1 - mu), 270: (h - 1 - mu, j)}[rotation]


def distribute(p, vision, words, mask, heads, language="words"):
    """Return the distributed language [h, w, C] and the attention over the words [heads, h, w, L]."""
    h, w, _ = vision.shape
    values = dense(p["value"], words)
    size = values.shape[1] // heads
    received = np.zeros((h, w, values.shape[1]))
    attention = np.zeros((heads, h, w, len(words)))
    for n in range(heads):
        channels = slice(n * size, (n + 1) * size)
        for y, x in np.ndindex(h, w):
            if language == "sentence":
                attention[n, y, x, 0] = 1
            else:
                query = dense(p["query"], vision[y, x])[channels]
                keys = dense(p["key"], words[mask])[:, channels]
                attention[n, y, x, mask] = softmax(keys @ query / np.sqrt(size))
            received[y, x, channels] = attention[n, y, x] @ values[:, channels]
    return layer_norm(p["norm"], received), attention


def group_map(p, generator, parsed, rotation, recurrence="gated"):
    """Return the group map [h, w, C] of one pair in one direction."""
    h, w, _ = generator.shape
    slices, positions = (h, w) if rotation in (0, 180) else (w, h)
    size = p["key"].shape[0]
    state = np.zeros((positions, size))
    result = np.zeros((h, w, p["value"].shape[1]))
    for j in range(slices):
        places = [place(rotation, j, mu, h, w) for mu in range(positions)]
        for mu, at in enumerate(places):
            input_part = generator[at] @ p["gates_kernel"] + p["gates_bias"]
            if recurrence == "none":
                state[mu] = np.tanh(input_part)
            elif recurrence == "linear":
                z = sigmoid(input_part[:size])
                state[mu] = (1 - z) * state[mu] + z * np.tanh(input_part[size:])
            else:
                z_input, reset_input, c_input = np.split(input_part, 3)
                z_state, reset_state = np.split(state[mu] @ p["update_reset"], 2)
                z, reset = sigmoid(z_input + z_state), sigmoid(reset_input + reset_state)
                candidate = np.tanh(c_input + (reset * state[mu]) @ p["candidate"])
                state[mu] = (1 - z) * state[mu] + z * candidate
        keys, values = state @ p["key"], state @ p["value"]
        for at in places:
            result[at] = softmax(keys @ (parsed[at] @ p["query"]) / np.sqrt(size)) @ values
    return result


def balance(p, maps, kind="position"):
    """Return the weighted sum [h, w, C] of group maps [r, h, w, C], and the weights, which broadcast against them."""
    if kind == "mean" or len(maps) == 1:
        weights = np.full((len(maps), 1, 1, 1), 1 / len(maps))
    else:
        evidence = maps if kind == "position" else maps.mean((1, 2), keepdims=True)
        weights = softmax(np.tanh(dense(p["hidden"], evidence)) @ p["score"]["kernel"], axis=0)
    return (weights * maps).sum(0), weights


def s2rm(p, vision, words, mask, heads, options):
    """Return F, the attention over the words, and the group maps and balance weights by pair.

    `options` may have language, recurrence, rotations, pairs, balance and residual, as in config.fusion.
    """
    seen = layer_norm(p["vision_norm"], dense(p["vision_projection"], vision))
    laid_out, attention = distribute(p["distribute"], seen, words, mask, heads, options.get("language", "words"))
    rotations, pairs = options.get("rotations", (0, 90, 180, 270)), options.get("pairs", PAIRS)
    sides = {PAIRS[0]: (laid_out, seen), PAIRS[1]: (seen, laid_out)}
    maps, sums, weights = {}, {}, {}
    for pair in pairs:
        stacked = {name.removeprefix(f"{pair}_"): x for name, x in p["coparse"].items() if name.startswith(pair)}
        maps[pair] = np.stack(
            [
                group_map({n: x[r] for n, x in stacked.items()}, *sides[pair], rotation, options.get("recurrence"))
                for r, rotation in enumerate(rotations)
            ]
        )
        sums[pair], weights[pair] = balance(p.get(f"{pair}_balance"), maps[pair], options.get("balance", "position"))
    residual = seen if options.get("residual") == "vision" else seen + laid_out
    mixed = dense(p["mix"], np.concatenate([sums[pair] for pair in pairs], -1))
    x = layer_norm(p["fused_norm"], residual + mixed)
    fused = layer_norm(p["output_norm"], x + dense(p["mlp_out"], gelu(dense(p["mlp_in"], x))))
    return fused, attention, maps, weights


def enlarge(x, height, width, times=2):
    """Return a map [h, w, ...] bilinearly at `times` its size, cropped to height x width."""

    def along(x, size):
        last = len(x) - 1
        rows = []
        for y in range(size):
            source = min(max((y + 0.5) / times - 0.5, 0), last)
            below = int(source)
            rows.append((1 - source + below) * x[below] + (source - below) * x[min(below + 1, last)])
        return np.stack(rows)

    return np.swapaxes(along(np.swapaxes(along(x, height), 0, 1), width), 0, 1)


def block(p, x):
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = np.zeros((h, w, p["conv"]["kernel"].shape[-1]))
    for row, column in np.ndindex(3, 3):
        y += padded[row : row + h, column : column + w] @ p["conv"]["kernel"][row, column]
    return gelu(layer_norm(p["norm"], y))


def foreground_mean(x, logits):
    q = sigmoid(logits)
    return (q[..., None] * x).sum((0, 1)) / (q.sum() + 1e-6)


def mask_head(p, x, abstract, guided):
    logits = dense(p["kernel"], x)[..., 0]
    return logits + x @ dense(p["meant"], abstract) / np.sqrt(x.shape[-1]) if guided else logits


def casg(p, fused, vision, sentence, options):
    """Return the mask logits from coarse to fine; `vision` is [V_1, V_2, ...].

    `options` may have guidance and semantics, as in config.decoder.
    """
    guidance, semantics = options.get("guidance", "full"), options.get("semantics", ("sentence", "stages"))
    abstract = sentence if "sentence" in semantics else sentence[:0]
    last = len(vision)
    x = block(p[f"stage{last}_block"], fused)
    logits = [mask_head(p[f"stage{last}_mask"], x, abstract, guidance == "full" and "sentence" in semantics)]
    for i in range(last - 1, 0, -1):
        h, w, _ = vision[i - 1].shape
        v = layer_norm(p[f"stage{i}_vision_norm"], dense(p[f"stage{i}_vision"], vision[i - 1]))
        coarse = enlarge(logits[-1], h, w)
        if "stages" in semantics:
            abstract = np.concatenate([abstract, foreground_mean(x, logits[-1])])
        if guidance != "none":
            guide = p[f"stage{i}_guide"]
            t = gelu(dense(guide["hidden"], abstract))
            in_space = sigmoid(v @ dense(guide["where"], t) / np.sqrt(v.shape[-1]) + coarse)
            v = v * sigmoid(dense(guide["which"], t)) * (1 + in_space[..., None])
        narrow = enlarge(dense(p[f"stage{i}_narrow"], x), h, w)
        x = block(p[f"stage{i}_block"], np.concatenate([narrow, v], -1))
        logits.append(mask_head(p[f"stage{i}_mask"], x, abstract, guidance == "full") + coarse)
    return logits


def no_target(p, sentence, fused, coarsest, finest):
    """Return the logit of "no referent" from the coarsest and the finest mask logits."""
    q = sigmoid(finest)
    x = np.concatenate([sentence, fused.mean((0, 1)), foreground_mean(fused, coarsest), [q.max()], [q.mean()]])
    return dense(p["nothing"], gelu(dense(p["hidden"], x)))[0]
