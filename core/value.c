/* The tree of values behind configurations (core/option.h). */
#include "core/option.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bk_value *bk_value_new(bk_arena *arena, bk_value_kind kind, const char *file, int line)
{
    bk_value *v = BK_ZNEW(arena, bk_value, 1);
    v->kind = kind;
    v->file = file;
    v->line = line;
    return v;
}

bk_value *bk_value_get(const bk_value *map, const char *key)
{
    if (!map || map->kind != BK_MAP)
        return NULL;
    for (bk_value *v = map->child; v; v = v->next)
        if (strcmp(v->key, key) == 0)
            return v;
    return NULL;
}

void bk_value_append(bk_value *parent, bk_value *child)
{
    *(parent->last ? &parent->last->next : &parent->child) = child;
    parent->last = child;
}

bk_value *bk_value_copy(bk_arena *arena, const bk_value *value)
{
    bk_value *copy = BK_NEW(arena, bk_value, 1);
    *copy = *value;
    copy->next = copy->child = copy->last = NULL;
    for (const bk_value *child = value->child; child; child = child->next)
        bk_value_append(copy, bk_value_copy(arena, child));
    return copy;
}

const char *bk_value_place(const bk_value *value, char text[BK_PLACE_TEXT])
{
    if (value->line > 0)
        snprintf(text, BK_PLACE_TEXT, "%.140s:%d", value->file, value->line);
    else
        snprintf(text, BK_PLACE_TEXT, "%.140s", value->file);
    return text;
}

/* Entry number `word` of a list. */
static bk_status list_entry(bk_value *list, const char *word, const char *path, bk_value **out)
{
    int64_t index;
    bk_value *entry = list->child;
    if (!bk_parse_i64(word, &index) || index < 0)
        return bk_fail(BK_USAGE, "'%s' is not a list index (%s): write a number from 0", word,
                       path);
    for (; entry && index > 0; index--)
        entry = entry->next;
    if (!entry)
        return bk_fail(BK_USAGE,
                       "the list has no entry '%s' (%s): it can be replaced in the file only", word,
                       path);
    *out = entry;
    return BK_OK;
}

/* One step down the path, making a map that is missing. */
static bk_status descend(bk_arena *arena, bk_value *at, const char *word, const char *path,
                         bk_value **out)
{
    if (at->kind == BK_LIST)
        return list_entry(at, word, path, out);
    if (at->kind == BK_SCALAR)
        return bk_fail(BK_USAGE, "'%s' stands below a plain value (%s): check the path", word,
                       path);
    *out = bk_value_get(at, word);
    if (!*out) {
        *out = bk_value_new(arena, BK_MAP, "command line", 0);
        (*out)->key = word;
        bk_value_append(at, *out);
    }
    return BK_OK;
}

static bool has_empty_word(const char *path)
{
    size_t length = strlen(path);
    return length == 0 || path[0] == '.' || path[length - 1] == '.' || strstr(path, "..");
}

bk_status bk_value_set(bk_arena *arena, bk_value *root, const char *path, const char *text)
{
    if (has_empty_word(path))
        return bk_fail(BK_USAGE, "'%s=%s' names no key: write section.key=value", path, text);
    char *words = bk_arena_strdup(arena, path), *rest = NULL;
    bk_value *at = root;
    for (char *word = strtok_r(words, ".", &rest); word; word = strtok_r(NULL, ".", &rest))
        BK_TRY(descend(arena, at, word, path, &at));
    at->kind = BK_SCALAR;
    at->text = bk_arena_strdup(arena, text);
    at->child = at->last = NULL;
    at->quoted = false;
    at->file = "command line";
    at->line = 0;
    return BK_OK;
}
