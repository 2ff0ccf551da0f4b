#include "io/yaml.h"

#include "io/files.h"

#include <jansson.h>
#include <libfyaml.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_KEYS = 1000 }; /* of one map, each compared with all */

typedef struct reader {
    bk_arena *arena;
    const char *name;
} reader;

static int line_of(struct fy_node *node)
{
    struct fy_token *token = fy_node_is_scalar(node) ? fy_node_get_scalar_token(node) : NULL;
    const struct fy_mark *mark = token ? fy_token_start_mark(token) : NULL;
    return mark ? mark->line + 1 : 0; /* marks count from 0 */
}

static bk_status convert(const reader *r, struct fy_node *node, bk_value **out);

static char *text_of(const reader *r, struct fy_node *node)
{
    size_t length = 0;
    const char *text = fy_node_get_scalar(node, &length);
    char *copy = bk_arena_alloc(r->arena, length + 1);
    if (length > 0)
        memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

static bk_status convert_map(const reader *r, struct fy_node *node, bk_value *map)
{
    struct fy_node_pair *pair;
    void *iterator = NULL;
    int keys = 0;
    while ((pair = fy_node_mapping_iterate(node, &iterator))) {
        struct fy_node *key = fy_node_pair_key(pair), *value = fy_node_pair_value(pair);
        bk_value *child;
        if (!key || !fy_node_is_scalar(key))
            return bk_fail(BK_USAGE, "a key is not plain text (%s): write key: value", r->name);
        char *name = text_of(r, key);
        int line = line_of(key);
        if (++keys > MOST_KEYS)
            return bk_fail(BK_USAGE,
                           "a map has more than %d keys (%s:%d): is this a configuration?",
                           MOST_KEYS, r->name, line);
        if (bk_value_get(map, name))
            return bk_fail(BK_USAGE, "key '%s' is given twice (%s:%d): remove one", name, r->name,
                           line);
        if (strcmp(name, "<<") == 0)
            return bk_fail(BK_USAGE, "merge keys are not read (%s:%d): write the keys out", r->name,
                           line);
        BK_TRY(convert(r, value, &child));
        child->key = name;
        child->line = line;
        map->line = map->line ? map->line : line;
        bk_value_append(map, child);
    }
    return BK_OK;
}

static bk_status convert_list(const reader *r, struct fy_node *node, bk_value *list)
{
    struct fy_node *item;
    void *iterator = NULL;
    while ((item = fy_node_sequence_iterate(node, &iterator))) {
        bk_value *child;
        BK_TRY(convert(r, item, &child));
        list->line = list->line ? list->line : child->line;
        bk_value_append(list, child);
    }
    return BK_OK;
}

static bk_status convert(const reader *r, struct fy_node *node, bk_value **out)
{
    bk_value_kind kind = !node || fy_node_is_scalar(node) ? BK_SCALAR
                         : fy_node_is_mapping(node)       ? BK_MAP
                                                          : BK_LIST;
    bk_value *v = *out = bk_value_new(r->arena, kind, r->name, node ? line_of(node) : 0);
    if (kind == BK_SCALAR) {
        enum fy_node_style style = node ? fy_node_get_style(node) : FYNS_PLAIN;
        if (style == FYNS_ALIAS)
            return bk_fail(BK_USAGE, "aliases are not read (%s:%d): write the value out", r->name,
                           v->line);
        v->text = node ? text_of(r, node) : "";
        v->quoted = style == FYNS_SINGLE_QUOTED || style == FYNS_DOUBLE_QUOTED;
        return BK_OK;
    }
    return kind == BK_MAP ? convert_map(r, node, v) : convert_list(r, node, v);
}

/* What a document of comments alone has at its root. */
static bool is_null(struct fy_node *root)
{
    size_t length = 0;
    return fy_node_is_scalar(root) && fy_node_get_scalar(root, &length) && length == 0 &&
           fy_node_get_style(root) == FYNS_PLAIN;
}

/* The first message of the parser, on one line. */
static bk_status parse_error(const char *name, struct fy_diag *diag)
{
    void *iterator = NULL;
    struct fy_diag_error *error = fy_diag_errors_iterate(diag, &iterator);
    if (!error)
        return bk_fail(BK_USAGE, "not YAML (%s): check the syntax", name);
    char text[512];
    snprintf(text, sizeof text, "%s", error->msg ? error->msg : "syntax error");
    text[strcspn(text, "\n")] = '\0';
    return bk_fail(BK_USAGE, "not YAML (%s:%d): %s", name, error->line, text);
}

static struct fy_diag *quiet_diag(void)
{
    struct fy_diag_cfg config;
    fy_diag_cfg_default(&config);
    config.level = FYET_ERROR;
    config.fp = NULL;
    struct fy_diag *diag = fy_diag_create(&config);
    if (!diag)
        bk_fatal("out of memory: YAML parser");
    fy_diag_set_collect_errors(diag, true);
    return diag;
}

/* The one document of the text; NULL when it holds nothing. */
static bk_status load(const char *name, struct fy_parser *parser, struct fy_diag *diag,
                      struct fy_document **out)
{
    *out = fy_parse_load_document(parser);
    if (fy_diag_got_error(diag))
        return parse_error(name, diag);
    struct fy_document *second = *out ? fy_parse_load_document(parser) : NULL;
    if (fy_diag_got_error(diag))
        return parse_error(name, diag);
    if (!second)
        return BK_OK;
    fy_parse_document_destroy(parser, second);
    return bk_fail(BK_USAGE, "there is more than one document (%s): keep the first, without ---",
                   name);
}

static bk_status parse(const reader *r, const char *text, size_t length, struct fy_diag *diag,
                       bk_value **out)
{
    /* our own message for a key given twice names the key */
    struct fy_parse_cfg config = {.diag = diag,
                                  .flags = FYPCF_DEFAULT_PARSE | FYPCF_COLLECT_DIAG |
                                           FYPCF_ALLOW_DUPLICATE_KEYS};
    struct fy_parser *parser = fy_parser_create(&config);
    struct fy_document *document = NULL;
    if (!parser || fy_parser_set_string(parser, text, length) != 0)
        bk_fatal("out of memory: YAML parser");
    bk_status status = load(r->name, parser, diag, &document);
    struct fy_node *root = document ? fy_document_root(document) : NULL;
    *out = bk_value_new(r->arena, BK_MAP, r->name, 1);
    if (status == BK_OK && root && fy_node_is_mapping(root))
        status = convert(r, root, out);
    else if (status == BK_OK && root && !is_null(root))
        status = bk_fail(BK_USAGE, "this is no map (%s:1): write lines of key: value", r->name);
    if (document)
        fy_parse_document_destroy(parser, document);
    fy_parser_destroy(parser);
    return status;
}

/* The first line that is not UTF-8, counted from 1; 0 when all are. */
static int foreign_line(const char *text, size_t length)
{
    const char *end = text + length;
    for (int line = 1; text < end; line++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text)),
                   *stop = newline ? newline : end;
        json_t *checked = json_stringn(text, (size_t)(stop - text));
        if (!checked)
            return line;
        json_decref(checked);
        text = stop + 1;
    }
    return 0;
}

/* The text need not end in NUL. */
static bool is_blank(const char *text, size_t length)
{
    while (length > 0 && strchr(" \r\n", text[length - 1]))
        length--;
    return length == 0;
}

bk_status bk_yaml_parse(bk_arena *arena, const char *name, const char *text, size_t length,
                        bk_value **out)
{
    const reader r = {arena, bk_arena_strdup(arena, name)};
    size_t mark = length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    *out = bk_value_new(arena, BK_MAP, r.name, 1);
    if (memchr(text, '\0', length))
        return bk_fail(BK_USAGE, "not YAML (%s): it holds a zero byte", r.name);
    int foreign = foreign_line(text + mark, length - mark);
    if (foreign > 0)
        return bk_fail(BK_USAGE, "not YAML (%s:%d): the line is not UTF-8", r.name, foreign);
    if (is_blank(text + mark, length - mark))
        return BK_OK;
    struct fy_diag *diag = quiet_diag();
    bk_status status = parse(&r, text + mark, length - mark, diag, out);
    fy_diag_destroy(diag);
    return status;
}

bk_status bk_yaml_read(bk_arena *arena, const char *path, bk_value **out)
{
    char *text;
    size_t length;
    bk_status status = bk_read_file(arena, path, &text, &length);
    if (status != BK_OK)
        return bk_fail(BK_USAGE, "the configuration cannot be read (%s): check the path", path);
    return bk_yaml_parse(arena, path, text, length, out);
}
