// The attention kernels of one instruction set. Included by kernels.inl, inside its namespaces and
// with its macros.

// Where a cache's token is, among those of one key/value head.
template <class T>
inline const T* cached(const T* cache, const Attention& a, int token) {
    return cache + a.blocks[token / a.tokens_per_block] * a.block_size +
           static_cast<long>(token % a.tokens_per_block) * a.head_dim;
}

inline VEC load_cached(const std::uint16_t* p) { return LOAD_HALF(p); }
inline VEC load_cached(const float* p) { return LOAD(p); }

// scores[h][token] = scale * q[h] . key for NH heads: a key is read and widened once for them all.
template <int NH, class T>
inline void attention_scores(const Attention& a, const T* keys, const float* q, float* scores) {
    for (int token = 0; token < a.num_tokens; ++token) {
        const T* key = cached(keys, a, token);
        VEC acc[NH];
        for (int h = 0; h < NH; ++h) acc[h] = ZERO();
        for (int i = 0; i < a.head_dim; i += WIDTH) {
            const VEC k = load_cached(key + i);
            for (int h = 0; h < NH; ++h)
                acc[h] = FMA(k, LOAD(q + static_cast<long>(h) * a.head_dim + i), acc[h]);
        }
        for (int h = 0; h < NH; ++h)
            scores[static_cast<long>(h) * a.num_tokens + token] = SUM(acc[h]) * a.scale;
    }
}

// out[h][i : i + NV * WIDTH] = the mean of the values, weighed, for NH heads.
template <int NH, int NV, class T>
inline void attention_columns(const Attention& a, const T* values, const float* weights, float* out,
                              int i) {
    VEC acc[NH][NV];
    for (int h = 0; h < NH; ++h)
        for (int v = 0; v < NV; ++v) acc[h][v] = ZERO();
    for (int token = 0; token < a.num_tokens; ++token) {
        const T* value = cached(values, a, token) + i;
        VEC vs[NV];
        for (int v = 0; v < NV; ++v) vs[v] = load_cached(value + v * WIDTH);
        for (int h = 0; h < NH; ++h) {
            const VEC w = SPLAT(weights[static_cast<long>(h) * a.num_tokens + token]);
            for (int v = 0; v < NV; ++v) acc[h][v] = FMA(vs[v], w, acc[h][v]);
        }
    }
    for (int h = 0; h < NH; ++h)
        for (int v = 0; v < NV; ++v)
            STORE(out + static_cast<long>(h) * a.head_dim + i + v * WIDTH, acc[h][v]);
}

// Two vectors of the head at a time; of a head of an odd number of panels one is left over where a
// panel is a vector.
template <int NH, class T>
inline void attention_values(const Attention& a, const T* values, const float* weights,
                             float* out) {
    int i = 0;
    for (; i + 2 * WIDTH <= a.head_dim; i += 2 * WIDTH)
        attention_columns<NH, 2>(a, values, weights, out, i);
    for (; i < a.head_dim; i += WIDTH) attention_columns<NH, 1>(a, values, weights, out, i);
}

template <int NH, class T>
inline void attend_heads(const Attention& a, const T* keys, const T* values, const float* q,
                         float* out, float* scores) {
    attention_scores<NH>(a, keys, q, scores);
    for (int h = 0; h < NH; ++h)
        softmax(scores + static_cast<long>(h) * a.num_tokens, a.num_tokens);
    attention_values<NH>(a, values, scores, out);
}

template <class T>
inline void attend_cached(const Attention& a, const T* keys, const T* values, const float* q,
                          float* out, float* scores) {
    int h = 0;
    const auto at = [&](auto* p) { return p + static_cast<long>(h) * a.head_dim; };
    for (; h + 3 <= a.num_heads; h += 3) attend_heads<3>(a, keys, values, at(q), at(out), scores);
    for (; h < a.num_heads; ++h) attend_heads<1>(a, keys, values, at(q), at(out), scores);
}

void attend(const Attention& a, const float* q, float* out, float* scores) {
    if (a.half_keys != nullptr)
        attend_cached(a, a.half_keys, a.half_values, q, out, scores);
    else
        attend_cached(a, a.keys, a.values, q, out, scores);
}
