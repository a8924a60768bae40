// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Which programs there are, and what is behind them if they are gates: for a guard that may trace (CAP_PERFMON), but not
 * take hold of the programs of another (CAP_SYS_ADMIN).
 *
 * An iterator over programs (kernel 5.9). Helpers: bpf_seq_write (5.8), bpf_probe_read_kernel (5.5).
 */
#include "lib/common.bpf.h"
#include "guard_sight.h"

/* A gate has its variables, its slot, and what the guard says of itself. */
#define MOST_MAPS 4

/* The kernel's name for a map of variables: as much of the object's as there is room for, and this. */
static __always_inline bool is_state(const char name[16])
{
	for (int i = 0; i < 12; i++)
		if (name[i] == '.')
			return name[i + 1] == 'b' && name[i + 2] == 's' && name[i + 3] == 's';
	return false;
}

static __always_inline void look_at(struct bpf_map *map, struct seen_program *seen)
{
	struct bpf_array *array = (struct bpf_array *)map;
	void *behind[SIGHT_BANKS] = {};
	char name[16] = {};

	switch (BPF_CORE_READ(map, map_type)) {
	case BPF_MAP_TYPE_ARRAY:
		BPF_CORE_READ_INTO(&name, map, name);
		if (!is_state(name))
			return;
		seen->has_state = !bpf_core_read(seen->state, sizeof(seen->state), &array->value);
		break;
	case BPF_MAP_TYPE_PROG_ARRAY:
		seen->has_slot = !bpf_core_read(behind, sizeof(behind), &array->ptrs);
		for (int i = 0; i < SIGHT_BANKS; i++)
			seen->behind[i] = !!behind[i];
		break;
	default:
		break;
	}
}

SEC("iter/bpf_prog")
int see_program(struct bpf_iter__bpf_prog *ctx)
{
	struct bpf_prog *program = ctx->prog;
	struct seen_program seen = {};
	struct bpf_map **maps, *map;
	struct bpf_prog_aux *aux;

	if (!program)
		return 0;
	aux = program->aux;
	seen.id = aux->id;
	BPF_CORE_READ_INTO(&seen.name, aux, name);
	maps = BPF_CORE_READ(aux, used_maps);
	for (__u32 i = 0; i < MOST_MAPS; i++) {
		if (i >= BPF_CORE_READ(aux, used_map_cnt) ||
		    bpf_probe_read_kernel(&map, sizeof(map), &maps[i]))
			break;
		look_at(map, &seen);
	}
	bpf_seq_write(ctx->meta->seq, &seen, sizeof(seen));
	return 0;
}

const struct seen_program *unused_seen_program __attribute__((unused));
