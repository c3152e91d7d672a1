package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxMessage bounds a message, which may quote the file.
const maxMessage = 300

// decoder walks the tree of a document and gathers every problem on its way.
//
// The schema is Go: an object is read with fields, a map from each key to the
// take that consumes its value, and with the keys that a later version will
// read. Any other key is unknown; a later one is refused as not supported yet.
//
//	v.object(fields{"delay": as(&drain.Delay, duration(0, day))}, "queue")
//
// Where a value stands is remembered by path, so that checks which look at the
// finished Config can say where the trouble is.
type decoder struct {
	file     string
	problems Problems
	warnings Problems
	at       map[string]Pos             // place of each path that is in the file
	names    map[string]map[string]bool // kind -> what the file defines
	refs     []reference                // to be resolved when everything is read
}

// reference is a value that names a thing defined elsewhere.
type reference struct{ kind, name, path string }

// value is a node and where it stands.
type value struct {
	d    *decoder
	node *yaml.Node
	key  *yaml.Node // the key it belongs to; nil in a list
	path string
}

// take consumes a value: it stores it or refuses it.
type take func(value)

// fields are the keys an object may have.
type fields map[string]take

func newDecoder(file string) *decoder {
	return &decoder{file: file, at: map[string]Pos{}, names: map[string]map[string]bool{}}
}

// report adds a problem.
func (d *decoder) report(pos Pos, path string, r *refusal) {
	d.problems = append(d.problems, d.problem(pos, path, r))
}

func (d *decoder) problem(pos Pos, path string, r *refusal) Problem {
	pos = Pos{max(1, pos.Line), max(1, pos.Column)}
	return Problem{File: d.file, Pos: pos, Path: short(path), Message: short(r.message), Hint: short(r.hint)}
}

// refuse adds a problem at path, or at the nearest path above it that is in
// the file: a default has no place of its own.
func (d *decoder) refuse(path string, r *refusal) {
	pos, path := d.locate(path)
	d.report(pos, path, r)
}

// warn is refuse for what is legal.
func (d *decoder) warn(path string, r *refusal) {
	pos, path := d.locate(path)
	d.warnings = append(d.warnings, d.problem(pos, path, r))
}

func (d *decoder) locate(path string) (Pos, string) {
	for path != "" {
		if pos, ok := d.at[path]; ok {
			return pos, path
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return Pos{1, 1}, ""
}

// short cuts what is too long to read, at a character.
func short(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	end := maxMessage
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// value wraps a node and remembers its place: of a scalar itself, of an object
// or list the key that leads to it.
func (d *decoder) value(node, key *yaml.Node, path string) value {
	v := value{d: d, node: node, key: key, path: path}
	d.at[path] = v.pos()
	return v
}

func (v value) pos() Pos {
	if v.key != nil && (v.node.Kind != yaml.ScalarNode || isNull(v.node)) {
		return v.keyPos()
	}
	return Pos{v.node.Line, v.node.Column}
}

func (v value) keyPos() Pos {
	if v.key == nil {
		return Pos{v.node.Line, v.node.Column}
	}
	return Pos{v.key.Line, v.key.Column}
}

func (v value) refuse(r *refusal)    { v.d.report(v.pos(), v.path, r) }
func (v value) refuseKey(r *refusal) { v.d.report(v.keyPos(), v.path, r) }

// is reports whether the node has the kind, and refuses it otherwise. An alias
// is refused by clean.
func (v value) is(kind yaml.Kind, want string) bool {
	if v.node.Kind == kind && !isNull(v.node) {
		return true
	}
	if v.node.Kind != yaml.AliasNode {
		v.refuse(wrongShape(want, shape(v.node)))
	}
	return false
}

// What a node can be, as messages call it.
const (
	anObject = "an object"
	aList    = "a list"
	aScalar  = "a single value"
)

func shape(node *yaml.Node) string {
	switch {
	case isNull(node):
		return "nothing"
	case node.Kind == yaml.MappingNode:
		return anObject
	case node.Kind == yaml.SequenceNode:
		return aList
	default:
		return aScalar
	}
}

// children returns the values of an object in the order of the file, without
// repeated keys, which it refuses. No value at all is an object without keys.
func (v value) children() []value {
	if isNull(v.node) || !v.is(yaml.MappingNode, anObject) {
		return nil
	}
	var all []value
	first := map[string]int{}
	for pair := range slices.Chunk(v.node.Content, 2) {
		key := pair[0]
		if key.Kind != yaml.ScalarNode || isNull(key) || key.Tag == "!!merge" {
			continue // refused by clean
		}
		path := strings.TrimPrefix(v.path+"."+key.Value, ".")
		if line, again := first[key.Value]; again {
			v.d.report(Pos{key.Line, key.Column}, path, duplicateKey(key.Value, line))
			continue
		}
		first[key.Value] = key.Line
		all = append(all, v.d.value(pair[1], key, path))
	}
	return all
}

// keys are the values of an object by key; nil when it is no object.
type keys map[string]value

// any reports whether one of the names is present.
func (k keys) any(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { _, ok := k[name]; return ok })
}

// object lets fields take each value. It returns the keys that are present and
// not unknown, later ones included.
func (v value) object(known fields, later ...string) keys {
	if !isNull(v.node) && v.node.Kind != yaml.MappingNode {
		v.is(yaml.MappingNode, anObject)
		return nil
	}
	present := keys{}
	for _, child := range v.children() {
		name := child.key.Value
		switch consume, ok := known[name]; {
		case ok:
			consume(child)
		case slices.Contains(later, name):
			child.refuseKey(notYet())
		default:
			child.refuseKey(unknownKey(name, slices.Sorted(maps.Keys(known)), later))
			continue
		}
		present[name] = child
	}
	return present
}

// need refuses v for each key that is absent.
func (v value) need(present keys, names ...string) {
	for _, name := range names {
		if present != nil && !present.any(name) {
			v.refuse(missingKey(name))
		}
	}
}

// oneOf refuses v unless exactly one of the names is present. It is content
// with a later one, which is refused already.
func (v value) oneOf(present keys, names []string, later ...string) {
	if present == nil || present.any(later...) {
		return
	}
	count := 0
	for _, name := range names {
		if present.any(name) {
			count++
		}
	}
	if count != 1 {
		v.refuse(wantOneOf(names))
	}
}

// named reads an object whose keys are names that the operator chose. Others
// may refer to them as a thing of that kind.
func (v value) named(kind string, each func(name string, v value)) {
	for _, child := range v.children() {
		name := child.key.Value
		if !validName(name) {
			child.refuseKey(badName(name))
			continue
		}
		v.d.define(kind, name)
		each(name, child)
	}
}

func (d *decoder) define(kind, name string) {
	if d.names[kind] == nil {
		d.names[kind] = map[string]bool{}
	}
	d.names[kind][name] = true
}

// items returns the values of a list.
func (v value) items() []value {
	if !v.is(yaml.SequenceNode, aList) {
		return nil
	}
	if len(v.node.Content) == 0 {
		v.refuse(emptyList())
	}
	all := make([]value, len(v.node.Content))
	for i, node := range v.node.Content {
		all[i] = v.d.value(node, nil, fmt.Sprintf("%s[%d]", v.path, i))
	}
	return all
}

// text returns a scalar as it is written. YAML's types do not matter here: 1.2
// and "1.2" are the same text.
func (v value) text() (string, bool) {
	if !v.is(yaml.ScalarNode, aScalar) {
		return "", false
	}
	return v.node.Value, true
}

// hold accepts a value that is read afterwards, from what object returns.
func hold(value) {}

// as stores the scalar that parse makes of the text.
func as[T any](into *T, parse func(string) (T, *refusal)) take {
	return func(v value) {
		text, ok := v.text()
		if !ok {
			return
		}
		result, r := parse(text)
		if r != nil {
			v.refuse(r)
			return
		}
		*into = result
	}
}

// list stores a list of scalars. One that is there twice is refused. Each item
// keeps its index, a refused one as the zero value.
func list[T comparable](into *[]T, parse func(string) (T, *refusal)) take {
	return func(v value) {
		items := v.items()
		all := make([]T, len(items))
		seen := make(map[T]bool, len(items))
		for i, item := range items {
			as(&all[i], parse)(item)
			if all[i] != *new(T) && seen[all[i]] {
				item.refuse(repeated(item.node.Value))
			}
			seen[all[i]] = true
		}
		*into = all
	}
}

// oneOrMore is list, where a single value needs no brackets.
func oneOrMore[T comparable](into *[]T, parse func(string) (T, *refusal)) take {
	return func(v value) {
		if v.node.Kind == yaml.SequenceNode {
			list(into, parse)(v)
			return
		}
		var one T
		as(&one, parse)(v)
		*into = []T{one}
	}
}

// ref stores the name of a thing that is defined elsewhere.
func ref(kind string, into *string) take {
	return func(v value) {
		as(into, anything)(v)
		v.refer(kind)
	}
}

// refs stores a list of such names.
func refs(kind string, into *[]string) take {
	return func(v value) {
		list(into, anything)(v)
		if v.node.Kind != yaml.SequenceNode {
			return
		}
		for i, node := range v.node.Content {
			value{d: v.d, node: node, path: fmt.Sprintf("%s[%d]", v.path, i)}.refer(kind)
		}
	}
}

func (v value) refer(kind string) {
	if v.node.Kind == yaml.ScalarNode && !isNull(v.node) {
		v.d.refs = append(v.d.refs, reference{kind, v.node.Value, v.path})
	}
}

// resolve refuses the references that lead nowhere and warns of what nobody
// refers to, for the kinds where that is a sign of a mistake.
func (d *decoder) resolve() {
	used := map[[2]string]bool{}
	sorted := map[string][]string{}
	for kind, names := range d.names {
		sorted[kind] = slices.Sorted(maps.Keys(names))
	}
	for _, r := range d.refs {
		used[[2]string{r.kind, r.name}] = true
		if !d.names[r.kind][r.name] {
			d.refuse(r.path, unknownName(r.kind, r.name, sorted[r.kind]))
		}
	}
	for _, kind := range []string{"pool", "policy", "provider"} {
		for name := range d.names[kind] {
			if path := plural(kind) + "." + name; !used[[2]string{kind, name}] {
				d.warn(path, unused(kind))
			}
		}
	}
}

// path resolves a path that is relative to the folder of routes.yaml.
func (d *decoder) path(text string) (string, *refusal) {
	if text == "" || filepath.IsAbs(text) {
		return text, nil
	}
	return filepath.Join(filepath.Dir(d.file), text), nil
}

// existing is path for what must be named.
func (d *decoder) existing(text string) (string, *refusal) {
	if text == "" {
		return "", noPath()
	}
	return d.path(text)
}

func anything(text string) (string, *refusal) { return text, nil }
