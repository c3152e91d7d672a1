package acmelab

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// gcsKnown are the fields of resources that a selection may name.
const gcsKnown = " kind items nextPageToken bucket name generation metageneration size updated contentType "

var errFields = errors.New("invalid field selection")

// selection is a parsed fields parameter; a leaf is nil.
type selection map[string]selection

// gcsFields reduces resource to what the fields parameter selects
// (https://cloud.google.com/storage/docs/json_api#partial-response), without
// wildcards and paths. It answers and reports false when that is invalid.
func gcsFields(w http.ResponseWriter, query url.Values, resource map[string]any) (any, bool) {
	if !query.Has("fields") {
		return resource, true
	}
	chosen, rest, err := parseFields(query.Get("fields"))
	if err != nil || rest != "" {
		answerGCS(w, http.StatusBadRequest, "invalidParameter", "Invalid field selection "+query.Get("fields"))
		return nil, false
	}
	return chosen.of(resource), true
}

// parseFields parses "a,b(c,d)" up to a closing bracket.
func parseFields(text string) (chosen selection, rest string, err error) {
	chosen = selection{}
	for {
		end := strings.IndexAny(text, ",()")
		if end < 0 {
			end = len(text)
		}
		name := text[:end]
		if name == "" || !strings.Contains(gcsKnown, " "+name+" ") {
			return nil, "", errFields
		}
		chosen[name], text = nil, text[end:]
		if strings.HasPrefix(text, "(") {
			if chosen[name], text, err = parseFields(text[1:]); err != nil || !strings.HasPrefix(text, ")") {
				return nil, "", errFields
			}
			text = text[1:]
		}
		if !strings.HasPrefix(text, ",") {
			return chosen, text, nil
		}
		text = text[1:]
	}
}

func (s selection) of(value any) any {
	switch v := value.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = s.of(v[i])
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for name, below := range s {
			found, ok := v[name]
			switch {
			case !ok:
			case below == nil:
				out[name] = found
			default:
				out[name] = below.of(found)
			}
		}
		return out
	}
	return value
}
