package config

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds routes.yaml; ten thousand routes fit.
const maxFile = 1 << 20

// Load reads and validates the file at path. The error is Problems: everything
// that is wrong with the file, in its order. A relative path inside the file is
// taken from the folder of the file.
func Load(path string) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, (&decoder{file: path}).fail(Pos{}, cannotRead(err))
	}
	return Parse(path, data)
}

// Parse is Load for data that was read from the file called name. It does not
// touch the file system, the network or the environment.
func Parse(name string, data []byte) (*Config, error) {
	d := newDecoder(name)
	root, err := d.document(data)
	if err != nil {
		return nil, err
	}
	cfg := d.config(root)
	d.problems.sort()
	d.warnings.sort()
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	cfg.Warnings = d.warnings
	return cfg, nil
}

// SocketOf returns the control socket that the file at path names, also when
// the rest of the file is wrong, which is when the command line needs it. The
// error says why it is DefaultSocket for want of a document that can be read.
func SocketOf(path string) (string, error) {
	data, err := readFile(path)
	if err != nil {
		return DefaultSocket, (&decoder{file: path}).fail(Pos{}, cannotRead(err))
	}
	d := newDecoder(path)
	root, err := d.document(data)
	if err != nil {
		return DefaultSocket, err
	}
	return d.config(root).Control.Socket, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // the problem names the file already
		}
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// document returns the root of the only YAML document in data. Errors here end
// the reading: there is no tree to look at.
func (d *decoder) document(data []byte) (*yaml.Node, error) {
	if len(data) > maxFile {
		return nil, d.fail(Pos{}, tooLarge(maxFile))
	}
	if at := notText(data); at >= 0 {
		return nil, d.fail(position(data, at), badEncoding())
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, d.syntax(data, err)
	}
	var doc, next yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return nil, d.fail(Pos{1, 1}, emptyDocument())
	case err != nil:
		return nil, d.syntax(data, err)
	}
	switch err := loader.Load(&next); {
	case err == nil:
		return nil, d.fail(Pos{next.Line, max(1, next.Column)}, secondDocument())
	case !errors.Is(err, io.EOF):
		return nil, d.syntax(data, err)
	}
	if len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return nil, d.fail(Pos{1, 1}, emptyDocument())
	}
	return doc.Content[0], nil
}

// syntax turns the error of the YAML library into a problem with a position.
func (d *decoder) syntax(data []byte, err error) error {
	cause, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return d.fail(Pos{1, 1}, badSyntax(err.Error()))
	}
	pos := Pos{cause.Mark.Line, cause.Mark.Column}
	if pos.Line < 1 || pos.Column < 1 { // from the reader, which counts bytes only
		pos = position(data, min(max(cause.Mark.Index, 0), len(data)))
	}
	if last := 1 + bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")); pos.Line > last {
		pos = position(data, len(data)) // the library ends the last line itself
	}
	if strings.Contains(cause.Message, "tab character") || d.tabAt(data, pos) {
		return d.fail(pos, badTab())
	}
	if at := noBreakSpace(data, pos.Line); at >= 0 {
		return d.fail(position(data, at), badSpace())
	}
	if strings.Contains(cause.Message, "unknown anchor") { // its name may be a secret that starts with *
		return d.fail(pos, unquotedStar())
	}
	message := cause.Message
	if cause.ContextMsg != "" {
		message = cause.ContextMsg + ", " + message
	}
	return d.fail(pos, badSyntax(message))
}

// tabAt reports whether the character at pos is a tab.
func (d *decoder) tabAt(data []byte, pos Pos) bool {
	for line := range bytes.Lines(data) {
		if pos.Line--; pos.Line == 0 {
			return pos.Column <= len(line) && line[pos.Column-1] == '\t'
		}
	}
	return false
}

// noBreakSpace returns the offset of the first such space in the line or the
// one above, where it may stand behind a colon; -1 when there is none.
func noBreakSpace(data []byte, line int) int {
	number, start := 0, 0
	for text := range bytes.Lines(data) {
		number++
		if at := bytes.Index(text, []byte("\u00a0")); at >= 0 && number >= line-1 {
			return start + at
		}
		if start += len(text); number == line {
			break
		}
	}
	return -1
}

// fail returns r as the only problem.
func (d *decoder) fail(pos Pos, r *refusal) error {
	return Problems{{File: d.file, Pos: pos, Message: r.message, Hint: r.hint}}
}

// notText returns the offset of the first byte that is not UTF-8 text, or -1.
func notText(data []byte) int {
	if i := bytes.IndexByte(data, 0); i >= 0 && utf8.Valid(data[:i]) {
		return i
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// position counts lines and columns (in characters) up to an offset.
func position(data []byte, offset int) Pos {
	before := data[:offset]
	line := 1 + bytes.Count(before, []byte("\n"))
	return Pos{line, 1 + utf8.RuneCount(before[1+bytes.LastIndexByte(before, '\n'):])}
}

// clean refuses what YAML allows and routes.yaml does not, in the whole tree:
// anchors, aliases and merges (they hide what is in force, and expand without
// bound), explicit tags, and keys that are no plain text.
func (d *decoder) clean(node *yaml.Node) {
	pos := Pos{node.Line, node.Column}
	switch {
	case node.Kind == yaml.AliasNode, node.Anchor != "":
		d.report(pos, "", noAlias())
	case node.Style&yaml.TaggedStyle != 0:
		d.report(pos, "", noTag())
	}
	if node.Kind == yaml.AliasNode { // its target was seen where it stands
		return
	}
	if node.Kind == yaml.MappingNode {
		for pair := range slices.Chunk(node.Content, 2) {
			switch key := pair[0]; {
			case key.Kind == yaml.AliasNode:
			case key.Tag == "!!merge":
				d.report(Pos{key.Line, key.Column}, "", noAlias())
			case key.Kind != yaml.ScalarNode || isNull(key):
				d.report(Pos{key.Line, key.Column}, "", badKey())
			}
		}
	}
	for _, child := range node.Content {
		d.clean(child)
	}
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.Tag == "!!null"
}
