"""The MatMul-free LM in formulas: whole-model forward, hand-written backward, AdamW. NumPy, slow on purpose.

P holds parameters and G gradients by their names in model.safetensors; c is config.json. Settings that Hugging Face's
hgrn_bit has no key for stand in its object "mmfree".
"""

import math

import numpy as np

# Activations: act(x, d) is d ⊙ act(x); slope(x) is the derivative.


def sig(x):
    return 1 / (1 + np.exp(-x))


def silu(x, d=1):
    return d * x * sig(x)


def dsilu(x):
    s = sig(x)
    return s * (1 + x * (1 - s))


def gauss(x):
    """The normal distribution function Φ."""
    return 0.5 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)))


def dgelu(x):
    return gauss(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tanh_gelu(x):
    """tanh(√(2/π) (x + 0.044715 x³)), which stands for 2Φ(x) − 1."""
    return np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def dgelu_tanh(x):
    t = tanh_gelu(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

ACTIVATIONS = {
    "silu": (silu, dsilu),
    "gelu": (lambda x, d=1: d * x * gauss(x), dgelu),
    "gelu_tanh": (lambda x, d=1: d * 0.5 * x * (1 + tanh_gelu(x)), dgelu_tanh),
    "relu": (lambda x, d=1: d * np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
    "relu2": (lambda x, d=1: d * np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
    "selu": (lambda x, d=1: d * SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
             lambda x: SELU_SCALE * np.where(x > 0, 1, SELU_ALPHA * np.exp(np.minimum(x, 0)))),
    "sigmoid": (lambda x, d=1: d * sig(x), lambda x: sig(x) * (1 - sig(x))),
    "identity": (lambda x, d=1: d * x, np.ones_like),
}  # fmt: skip


# Roundings of a projection's operands: (activations, weights). Backward takes each for the identity (straight-through).


def quantize_activation(y):
    """Per-row absmax int8 (half away from zero), dequantised."""
    s = 127 / np.maximum(np.abs(y).max(-1, keepdims=True), 1e-5)
    v = y * s
    return np.clip(np.sign(v) * np.floor(np.abs(v) + 0.5), -128, 127) / s


def quantize_weight(w):
    """Per-tensor absmean ternary (half to even), dequantised."""
    s = 1 / max(np.abs(w).mean(), 1e-5)
    return np.clip(np.rint(w * s), -1, 1) / s


def round_bf16(x):
    """To the nearest bf16, halves to even, by way of float32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(x.dtype)


ROUNDINGS = {
    "ternary": (quantize_activation, quantize_weight),
    "bf16": (round_bf16, round_bf16),
    "f32": (lambda y: y, lambda w: w),
}

# Settings of one layer and their defaults.
DEFAULTS = {"token": "mlgru", "channel": "glu", "activation": "silu", "precision": "ternary", "inner_norm": True,
            "gate_order": "reference", "heads": 1, "kv_heads": 0, "head_dim": 0, "rope_theta": 10000.0,
            "sliding_window": 0, "fused_gate": True, "sub_norm": False}  # fmt: skip


def settings(c):
    """(settings of the head, list of the layers' settings): defaults, then the model's keys, then a layer's entry."""
    extras = c.get("mmfree", {})
    assert extras.keys() <= DEFAULTS.keys() | {"precision_rules", "layers"}, f"unknown settings: {extras}"
    model = DEFAULTS | {k: v for k, v in extras.items() if k in DEFAULTS}
    model["intermediate_size"] = c["intermediate_size"]
    entries = extras.get("layers", [{"repeat": c["num_hidden_layers"]}])
    assert all(entry.keys() <= model.keys() | {"repeat"} for entry in entries), f"unknown settings: {entries}"
    layers = [model | entry for entry in entries for _ in range(entry.get("repeat", 1))]
    assert len(layers) == c["num_hidden_layers"], f"{len(layers)} layers are listed, not {c['num_hidden_layers']}"
    return model, layers


def attention_shape(c, setting):
    """(heads, heads of keys and values, width of a head)"""
    heads = setting["heads"]
    return heads, setting["kv_heads"] or heads, setting["head_dim"] or c["hidden_size"] // heads


def ruled(c, setting, layer, projection):
    """The setting of one projection: rules that name layer and projection change it, the last one wins. A rule without
    layers holds for all and for the head."""
    for rule in c.get("mmfree", {}).get("precision_rules", []):
        here = not rule.get("layers") or layer in rule["layers"]
        if here and (not rule.get("projections") or projection in rule["projections"]):
            setting = setting | {k: rule[k] for k in ("precision", "inner_norm") if k in rule}
    return setting


class Norm:
    """y = x r w with r = 1 / sqrt(mean x² + eps)."""

    def __init__(self, P, G, name, eps):
        self.w, self.G, self.name, self.eps = P[name], G, name, eps

    def forward(self, x):
        self.x, self.r = x, 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return x * self.r * self.w

    def backward(self, dy):
        xh, g = self.x * self.r, dy * self.w
        self.G[self.name] = (dy * xh).reshape(-1, self.w.size).sum(0)
        return (g - xh * (xh * g).mean(-1, keepdims=True)) * self.r


class Projection:
    """y = round(norm(x)) · round(W)ᵀ. W may be another's matrix (tied embeddings)."""

    EPS = 1e-6

    def __init__(self, P, G, name, setting, weight=None):
        self.name, self.G, self.weight, self.precision = name, G, weight or name + ".weight", setting["precision"]
        self.W = P[self.weight]
        self.norm = Norm(P, G, name + ".norm.weight", self.EPS) if setting["inner_norm"] else None

    def round(self, y):
        activations, weights = ROUNDINGS[self.precision]
        return activations(y), weights(self.W)

    def forward(self, x):
        self.yq, self.Wq = self.round(self.norm.forward(x) if self.norm else x)
        return self.yq @ self.Wq.T

    def backward(self, dout):
        k, n = self.W.shape
        self.G[self.weight] = dout.reshape(-1, k).T @ self.yq.reshape(-1, n)
        dy = dout @ self.Wq
        return self.norm.backward(dy) if self.norm else dy


class LowerBounds:
    """γ_l = Σ_{1≤j≤l} p_j with p = softmax of the parameter over the layers; layer 0 has none."""

    def __init__(self, P, G):
        lb, self.G = P["model.lower_bounds"], G
        p = np.exp(lb - lb.max(0))
        self.p = p / p.sum(0)
        self.gamma = np.cumsum(self.p, 0) - self.p[0]

    def backward(self, dgamma):
        dp = np.cumsum(dgamma[::-1], 0)[::-1].copy()
        dp[0] = 0
        self.G["model.lower_bounds"] = self.p * (dp - (self.p * dp).sum(0))


class MlGru:
    """h_t = f_t ⊙ h_{t−1} + SiLU(a_t) ⊙ (1 − f_t), h_{t−1} = 0 at a start, and the output gate of three orders."""

    def __init__(self, layer):
        self.i, self.f, self.g, self.o = (layer.projection(f"attn.{k}_proj") for k in "ifgo")
        self.gamma, self.order = layer.gamma, layer.setting["gate_order"]
        self.cut = False if layer.starts is None else layer.starts[..., None] == 1
        assert self.order in ("reference", "fixed", "paper"), self.order
        self.norm = None if self.order == "paper" else layer.norm("attn.g_norm.weight")

    def forward(self, u):
        self.a, z, self.gate = self.i.forward(u), self.f.forward(u), self.g.forward(u)
        self.s = sig(z)
        self.forget = self.s if self.gamma is None else self.gamma + (1 - self.gamma) * self.s
        x = silu(self.a) * (1 - self.forget)
        self.keep = np.where(self.cut, 0, self.forget)
        self.h, st = np.empty_like(x), np.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            st = self.keep[:, t] * st + x[:, t]
            self.h[:, t] = st
        return self.o.forward(self.gate_forward())

    def gate_forward(self):
        """reference: RMS(g)·w ⊙ SiLU(h); fixed: RMS(h)·w ⊙ SiLU(g); paper: h ⊙ σ(g)."""
        if self.order == "paper":
            return self.h * sig(self.gate)
        normed, b = (self.gate, self.h) if self.order == "reference" else (self.h, self.gate)
        self.n = self.norm.forward(normed)
        return self.n * b * sig(b)

    def gate_backward(self, dm):
        """Gradients of g and h."""
        if self.order == "paper":
            s = sig(self.gate)
            return dm * self.h * s * (1 - s), dm * s
        b = self.h if self.order == "reference" else self.gate
        da, db = self.norm.backward(dm * silu(b)), dm * self.n * dsilu(b)
        return (da, db) if self.order == "reference" else (db, da)

    def backward(self, dout):
        dg, dh = self.gate_backward(self.o.backward(dout))
        df, dx = np.empty_like(dh), np.empty_like(dh)
        acc = np.zeros_like(dh[:, 0])
        for t in range(dh.shape[1] - 1, -1, -1):
            acc = acc + dh[:, t]
            dx[:, t] = acc
            df[:, t] = acc * (self.h[:, t - 1] if t else 0)
            acc = acc * self.keep[:, t]
        da = dx * (1 - self.forget) * dsilu(self.a)
        df = np.where(self.cut, 0, df) - silu(self.a, dx)
        self.dgamma = (df * (1 - self.s)).reshape(-1, df.shape[-1]).sum(0)
        ds = df if self.gamma is None else df * (1 - self.gamma)
        dz = ds * self.s * (1 - self.s)
        return self.i.backward(da) + self.f.backward(dz) + self.g.backward(dg)


class Attention:
    """Causal softmax attention with rotary positions: head h reads the keys and values of head h // (H / G). Query i
    sees key j of its own document where i − window < j ≤ i; positions count from the document's start."""

    dgamma = 0

    def __init__(self, layer):
        self.q, self.k, self.v, self.o = (layer.projection(f"attn.{k}_proj") for k in "qkvo")
        self.heads, self.groups, self.width = attention_shape(layer.c, layer.setting)
        self.theta, self.window, self.starts = layer.setting["rope_theta"], layer.setting["sliding_window"], layer.starts
        self.norm = layer.norm("attn.sub_norm.weight") if layer.setting["sub_norm"] else None

    def places(self, x):
        """What follows from where the documents start: cosines and sines [B, 1, T, W/2], mask [B, 1, T, T]."""
        B, T = x.shape[:2]
        i = np.arange(T)
        begins = np.zeros((B, T), int)
        if self.starts is not None:
            begins = np.maximum.accumulate(np.where(self.starts == 1, i, 0), 1)
        angles = (i - begins)[..., None] * self.theta ** (-2 * np.arange(self.width // 2) / self.width)
        self.cos, self.sin = (f(angles)[:, None].astype(x.dtype) for f in (np.cos, np.sin))
        seen = (i <= i[:, None]) & (i >= begins[..., None])
        if self.window:
            seen &= i > i[:, None] - self.window
        self.seen = seen[:, None]

    def turned(self, x, sin):
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * self.cos - b * sin, b * self.cos + a * sin], -1)

    def split(self, x):
        """[B, T, heads · W] as [B, heads, T, W]."""
        return x.reshape(*x.shape[:2], -1, self.width).swapaxes(1, 2)

    def joined(self, x):
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def forward(self, u):
        self.places(u)
        each = self.heads // self.groups
        self.rq = self.turned(self.split(self.q.forward(u)), self.sin)
        self.rk = self.turned(self.split(self.k.forward(u)), self.sin).repeat(each, 1)
        self.rv = self.split(self.v.forward(u)).repeat(each, 1)
        scores = np.where(self.seen, self.rq @ self.rk.swapaxes(2, 3) / math.sqrt(self.width), -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        self.p = p / p.sum(-1, keepdims=True)
        out = self.joined(self.p @ self.rv)
        return self.o.forward(self.norm.forward(out) if self.norm else out)

    def backward(self, dout):
        do = self.o.backward(dout)
        do = self.split(self.norm.backward(do) if self.norm else do)
        dp = do @ self.rv.swapaxes(2, 3)
        ds = self.p * (dp - (self.p * dp).sum(-1, keepdims=True)) / math.sqrt(self.width)
        dq, dk, dv = ds @ self.rk, ds.swapaxes(2, 3) @ self.rq, self.p.swapaxes(2, 3) @ do
        B, H, T, W = dq.shape
        dk, dv = (x.reshape(B, self.groups, H // self.groups, T, W).sum(2) for x in (dk, dv))
        du = self.q.backward(self.joined(self.turned(dq, -self.sin)))
        du = du + self.k.backward(self.joined(self.turned(dk, -self.sin)))
        return du + self.v.backward(self.joined(dv))


class Channel:
    """down(norm(act(a) [⊙ b])); the norm only with sub_norm."""

    def __init__(self, layer):
        self.down = layer.projection("mlp.down_proj")
        self.act, self.slope = ACTIVATIONS[layer.setting["activation"]]
        self.norm = layer.norm("mlp.sub_norm.weight") if layer.setting["sub_norm"] else None

    def out(self, z):
        return self.down.forward(self.norm.forward(z) if self.norm else z)

    def out_backward(self, dout):
        dz = self.down.backward(dout)
        return self.norm.backward(dz) if self.norm else dz


class Glu(Channel):
    """a, b: the halves of gate(v); of two matrices, unless the gate is fused, gate(v) and up(v)."""

    def __init__(self, layer):
        super().__init__(layer)
        self.gate = layer.projection("mlp.gate_proj")
        self.up = None if layer.setting["fused_gate"] else layer.projection("mlp.up_proj")

    def forward(self, v):
        y = self.gate.forward(v)
        self.a, self.b = (y, self.up.forward(v)) if self.up else np.split(y, 2, -1)
        return self.out(self.act(self.a) * self.b)

    def backward(self, dout):
        dz = self.out_backward(dout)
        da, db = dz * self.b * self.slope(self.a), self.act(self.a, dz)
        if self.up:
            return self.gate.backward(da) + self.up.backward(db)
        return self.gate.backward(np.concatenate([da, db], -1))


class Mlp(Channel):
    """a = up(v), no b."""

    def __init__(self, layer):
        super().__init__(layer)
        self.up = layer.projection("mlp.up_proj")

    def forward(self, v):
        self.a = self.up.forward(v)
        return self.out(self.act(self.a))

    def backward(self, dout):
        return self.up.backward(self.out_backward(dout) * self.slope(self.a))


TOKENS, CHANNELS = {"mlgru": MlGru, "attention": Attention}, {"glu": Glu, "mlp": Mlp}


class Block:
    """h' = h + token(norm(h)), y = h' + channel(norm(h'))."""

    def __init__(self, c, P, G, number, setting, gamma, projection, starts):
        self.c, self.P, self.G, self.number, self.setting, self.gamma = c, P, G, number, setting, gamma
        self.make, self.starts = projection, starts
        self.attn_norm, self.mlp_norm = self.norm("attn_norm.weight"), self.norm("mlp_norm.weight")
        self.token, self.channel = TOKENS[setting["token"]](self), CHANNELS[setting["channel"]](self)

    def norm(self, name):
        return Norm(self.P, self.G, f"model.layers.{self.number}.{name}", self.c["rms_norm_eps"])

    def projection(self, path):
        setting = ruled(self.c, self.setting, self.number, path.split(".")[-1])
        return self.make(self.P, self.G, f"model.layers.{self.number}.{path}", setting)

    def forward(self, h):
        h = h + self.token.forward(self.attn_norm.forward(h))
        return h + self.channel.forward(self.mlp_norm.forward(h))

    def backward(self, dh):
        dh = dh + self.mlp_norm.backward(self.channel.backward(dh))
        dh = dh + self.attn_norm.backward(self.token.backward(dh))
        return dh


def next_tokens(ids):
    """Targets [B, T]: the next id; −100, which is not scored, at the end."""
    return np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], -100)], 1)


def cross_entropy(logits, targets):
    """Mean over the scored positions, and its gradient."""
    scored = targets != -100
    target = np.where(scored, targets, 0)[..., None]
    mx = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - mx).sum(-1, keepdims=True)) + mx
    loss = (lse - np.take_along_axis(logits, target, -1))[scored].mean()
    dl = np.exp(logits - lse)
    np.put_along_axis(dl, target, np.take_along_axis(dl, target, -1) - 1, -1)
    dl = np.where(scored[..., None], dl, 0) / int(scored.sum())
    return loss, dl


def run(c, P, ids, targets=None, starts=None, projection=Projection):
    """(loss, logits, inputs of the layers and output of the final norm, gradients by name)."""
    G, hidden = {}, []
    model, layers = settings(c)
    E = "model.embeddings.weight"
    bounds = LowerBounds(P, G) if "model.lower_bounds" in P else None
    blocks = [Block(c, P, G, l, setting, bounds.gamma[l] if bounds and l else None, projection, starts)
              for l, setting in enumerate(layers)]  # fmt: skip
    norm = Norm(P, G, "model.norm.weight", c["rms_norm_eps"])
    shared = E if c.get("tie_word_embeddings") else None
    head = projection(P, G, "lm_head", ruled(c, model, -1, "lm_head"), shared)

    h = P[E][ids]
    for block in blocks:
        hidden.append(h)
        h = block.forward(h)
    q = norm.forward(h)
    hidden.append(q)
    logits = head.forward(q)
    loss, dl = cross_entropy(logits, next_tokens(ids) if targets is None else targets)

    dh = norm.backward(head.backward(dl))
    for block in reversed(blocks):
        dh = block.backward(dh)
    if bounds:
        bounds.backward(np.stack([block.token.dgamma + np.zeros_like(bounds.p[0]) for block in blocks]))
    dE = G.get(E, np.zeros_like(P[E]))
    np.add.at(dE, ids.reshape(-1), dh.reshape(-1, dh.shape[-1]))
    G[E] = dE
    return loss, logits, hidden, G


def adamw(P, G, state, lr, step, betas=(0.9, 0.95), eps=1e-8, wd=0.1, clip=1.0):
    """One AdamW step as torch.optim.AdamW does it, after clip_grad_norm_(clip). Weight decay on matrices only
    (2-D tensors other than embeddings and lower bounds). Returns the unclipped global gradient norm."""
    norm = np.sqrt(sum((g * g).sum() for g in G.values()))
    scale = min(1.0, clip / (norm + 1e-6))
    for k in P:
        g = G[k] * scale
        m, v = state.setdefault(k, [np.zeros_like(g), np.zeros_like(g)])
        m *= betas[0]
        m += (1 - betas[0]) * g
        v *= betas[1]
        v += (1 - betas[1]) * g * g
        decay = wd if P[k].ndim == 2 and "embeddings" not in k and "lower_bounds" not in k else 0
        P[k] = P[k] * (1 - lr * decay) - lr * (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    return norm
