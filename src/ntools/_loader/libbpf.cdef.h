/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of libbpf that ntools calls: old and stable functions only.
 *
 * The option structs grow with the library; they are declared once, at the
 * layout of 1.3, and given zeroed with sz set. An older library accepts the
 * longer struct as long as the tail is zero.
 */
struct bpf_object;
struct bpf_program;
struct bpf_map;
struct bpf_link;
struct btf;
struct btf_dedup_opts;

struct bpf_object_open_opts {
	size_t sz;
	const char *object_name;
	bool relaxed_maps;
	const char *pin_root_path;
	uint32_t removed;
	const char *kconfig;
	const char *btf_custom_path;
	char *kernel_log_buf;
	size_t kernel_log_size;
	uint32_t kernel_log_level;
};

/* What a handler may change of the options of a load. */
struct bpf_prog_load_opts {
	size_t sz;
	int attempts;
	uint32_t expected_attach_type;
	uint32_t prog_btf_fd;
	uint32_t prog_flags;
	uint32_t prog_ifindex;
	uint32_t kern_version;
	uint32_t attach_btf_id;
	uint32_t attach_prog_fd;
	uint32_t attach_btf_obj_fd;
};

typedef int (*libbpf_prog_setup_fn_t)(struct bpf_program *prog, long cookie);
typedef int (*libbpf_prog_prepare_load_fn_t)(struct bpf_program *prog,
					     struct bpf_prog_load_opts *opts, long cookie);
typedef int (*libbpf_prog_attach_fn_t)(const struct bpf_program *prog, long cookie,
				       struct bpf_link **link);

struct libbpf_prog_handler_opts {
	size_t sz;
	long cookie;
	libbpf_prog_setup_fn_t prog_setup_fn;
	libbpf_prog_prepare_load_fn_t prog_prepare_load_fn;
	libbpf_prog_attach_fn_t prog_attach_fn;
};

/* The kernel's. */
struct bpf_btf_info {
	uint64_t btf;
	uint32_t btf_size;
	uint32_t id;
	uint64_t name;
	uint32_t name_len;
	uint32_t kernel_btf;
};

struct bpf_map_batch_opts {
	size_t sz;
	uint64_t elem_flags;
	uint64_t flags;
};

typedef int (*libbpf_print_fn_t)(int level, const char *format, void *arguments);
libbpf_print_fn_t libbpf_set_print(libbpf_print_fn_t fn);
uint32_t libbpf_major_version(void);
uint32_t libbpf_minor_version(void);
int libbpf_set_strict_mode(int mode);
int libbpf_num_possible_cpus(void);

struct bpf_object *bpf_object__open_file(const char *path, const struct bpf_object_open_opts *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);

const char *bpf_program__name(const struct bpf_program *prog);
const char *bpf_program__section_name(const struct bpf_program *prog);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
int bpf_program__fd(const struct bpf_program *prog);
struct bpf_link *bpf_program__attach(const struct bpf_program *prog);
struct bpf_link *bpf_program__attach_trace(const struct bpf_program *prog);
int libbpf_register_prog_handler(const char *sec, int prog_type, int exp_attach_type,
				 const struct libbpf_prog_handler_opts *opts);
int bpf_link__destroy(struct bpf_link *link);

const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__type(const struct bpf_map *map);
uint32_t bpf_map__key_size(const struct bpf_map *map);
uint32_t bpf_map__value_size(const struct bpf_map *map);
uint32_t bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__set_type(struct bpf_map *map, int type);
int bpf_map__set_key_size(struct bpf_map *map, uint32_t size);
int bpf_map__set_value_size(struct bpf_map *map, uint32_t size);
int bpf_map__set_max_entries(struct bpf_map *map, uint32_t max_entries);

int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
			 uint32_t *count, const struct bpf_map_batch_opts *opts);
int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *info_len);
int bpf_enable_stats(int type);

int bpf_btf_get_next_id(uint32_t start_id, uint32_t *next_id);
int bpf_btf_get_fd_by_id(uint32_t id);

struct btf *btf__new(const void *data, uint32_t size);
struct btf *btf__parse_raw_split(const char *path, struct btf *base_btf);
uint32_t btf__type_cnt(const struct btf *btf);
const void *btf__type_by_id(const struct btf *btf, uint32_t id);
void btf__free(struct btf *btf);
int btf__add_btf(struct btf *btf, const struct btf *src_btf);
int btf__dedup(struct btf *btf, const struct btf_dedup_opts *opts);
int btf__add_str(struct btf *btf, const char *s);
const void *btf__raw_data(const struct btf *btf, uint32_t *size);

/* libc: the text of a library message. On both architectures a va_list parameter is a pointer. */
int vsnprintf(char *text, size_t size, const char *format, void *arguments);
