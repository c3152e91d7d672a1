package http2

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"

	"edge/proxy/exchange"
)

// Field blocks, both ways. We encode without the dynamic table: what one client
// sends must not be found out by another whose requests share the connection
// (RFC 7541 7.1), a block needs no lock to be encoded, and it costs less time
// than hpack.Encoder does (BenchmarkBlock). For the same reason strings go out
// as they are and not in Huffman codes.

// Entries of the static table that are whole fields (RFC 7541 Appendix A).
const (
	indexAuthority = 1
	indexGet       = 2
	indexPost      = 3
	indexMethod    = 2
	indexRoot      = 4
	indexPath      = 4
	indexHTTP      = 6
	indexHTTPS     = 7
	indexLength    = 28
	indexExpect    = 35
)

// fieldOverhead is what a field counts beside its text (RFC 9113 6.5.2).
const fieldOverhead = 32

// encoder appends fields to a block.
type encoder struct {
	block []byte
	size  int // of the list, as its receiver counts
}

var encoders = sync.Pool{New: func() any { return &encoder{} }}

// newEncoder returns an encoder whose block begins with noTable, to be left out
// unless it is the first of its connection.
func newEncoder() *encoder {
	e := encoders.Get().(*encoder) //nolint:forcetypeassert // the pool holds nothing else
	e.block, e.size = append(e.block[:0], noTable), 0
	return e
}

func (e *encoder) free() {
	if cap(e.block) <= keptBlock {
		encoders.Put(e)
	}
}

func (e *encoder) indexed(i byte, name, value string) {
	e.size += len(name) + len(value) + fieldOverhead
	e.block = append(e.block, 0x80|i)
}

// literal appends a field that is not to be indexed, with a name of the static
// table. A sensitive one must not be indexed by anybody behind us either.
func (e *encoder) literal(i byte, name, value string, k kind) {
	e.size += len(name) + len(value) + fieldOverhead
	e.representation(i, k)
	e.string(value)
}

// representation appends the first bytes of a literal (RFC 7541 6.2.2, 6.2.3).
func (e *encoder) representation(i byte, k kind) {
	var never byte
	if k == sensitive {
		never = 0x10
	}
	if i < 15 {
		e.block = append(e.block, never|i)
		return
	}
	e.block = append(e.block, never|15, i-15)
}

func (e *encoder) length(n int) {
	if n < 127 {
		e.block = append(e.block, byte(n)) //nolint:gosec // it fits
		return
	}
	e.block = append(e.block, 127)
	for n -= 127; n >= 128; n >>= 7 {
		e.block = append(e.block, byte(n)|0x80)
	}
	e.block = append(e.block, byte(n))
}

func (e *encoder) string(s string) {
	e.length(len(s))
	e.block = append(e.block, s...)
}

// section is where a field stands.
type section uint8

const (
	headSection section = iota
	headBeforeTrailer
	trailerSection
)

// field appends a field of a message unless it is the engine's to write.
func (e *encoder) field(name, value string, in section) error {
	known := lookUp(name)
	value = trimSpace(value)
	switch known.kind {
	case hopByHop, framing:
		return nil
	case onlyTE:
		if in == trailerSection || !strings.EqualFold(value, "trailers") {
			return nil
		}
	case announcing:
		if in != headBeforeTrailer {
			return nil
		}
	case ordinary, sensitive:
	}
	if !validToken(name) {
		return fmt.Errorf("%w: invalid field name", exchange.ErrUnsendable)
	}
	if !validValue(value) {
		return fmt.Errorf("%w: invalid value of a field", exchange.ErrUnsendable)
	}
	if known.index != 0 {
		e.literal(known.index, name, value, known.kind)
		return nil
	}
	e.size += len(name) + len(value) + fieldOverhead
	e.representation(0, known.kind)
	e.length(len(name))
	from := len(e.block)
	e.block = append(e.block, name...)
	for i, c := range e.block[from:] {
		e.block[from+i] = toLower(c)
	}
	e.string(value)
	return nil
}

// noTable is the instruction to keep no dynamic table (RFC 7541 6.3). It opens
// the first block of a connection, after which no change of
// SETTINGS_HEADER_TABLE_SIZE needs an answer (RFC 9113 4.3.1).
const noTable = 0x20

// Methods that have a meaning here.
const (
	methodGet     = "GET"
	methodPost    = "POST"
	methodHead    = "HEAD"
	methodConnect = "CONNECT"
)

// sendable says what of the call's own parts HTTP/2 cannot express.
func sendable(call *exchange.Call) error {
	switch {
	case call.Upgrade || call.Method == methodConnect:
		return fmt.Errorf("%w: HTTP/2 has no tunnel here", exchange.ErrUnsendable)
	case !validToken(call.Method):
		return fmt.Errorf("%w: invalid method", exchange.ErrUnsendable)
	case call.Scheme != "http" && call.Scheme != "https":
		return fmt.Errorf("%w: invalid scheme", exchange.ErrUnsendable)
	case !validTarget(call.Method, call.Target):
		return fmt.Errorf("%w: invalid target", exchange.ErrUnsendable)
	case !httpguts.ValidHostHeader(call.Host): // as proxy/http1 has it; it has no userinfo (RFC 9113 8.3.1)
		return fmt.Errorf("%w: invalid authority", exchange.ErrUnsendable)
	}
	return nil
}

// request appends the header section of a request (RFC 9113 8.3.1).
func (e *encoder) request(call *exchange.Call) error {
	if err := sendable(call); err != nil {
		return err
	}
	e.pseudo(call)
	in := headSection
	if call.Trailer != nil {
		in = headBeforeTrailer
	}
	for i := range call.Header {
		if err := e.field(call.Header[i].Name, call.Header[i].Value, in); err != nil {
			return err
		}
	}
	length := bodyLength(call)
	if length > 0 || length == 0 && meansBody(call.Method) {
		var digits [20]byte
		e.literal(indexLength, "content-length", string(strconv.AppendInt(digits[:0], length, 10)), ordinary)
	}
	if call.Continue && length != 0 {
		e.literal(indexExpect, "expect", "100-continue", ordinary)
	}
	return nil
}

func (e *encoder) pseudo(call *exchange.Call) {
	switch call.Method {
	case methodGet:
		e.indexed(indexGet, ":method", methodGet)
	case methodPost:
		e.indexed(indexPost, ":method", methodPost)
	default:
		e.literal(indexMethod, ":method", call.Method, ordinary)
	}
	if call.Scheme == "https" {
		e.indexed(indexHTTPS, ":scheme", "https")
	} else {
		e.indexed(indexHTTP, ":scheme", "http")
	}
	if call.Target == "/" {
		e.indexed(indexRoot, ":path", "/")
	} else {
		e.literal(indexPath, ":path", call.Target, ordinary)
	}
	if call.Host != "" {
		e.literal(indexAuthority, ":authority", call.Host, ordinary)
	}
}

// bodyLength is what the request declares; a nil Body is none.
func bodyLength(call *exchange.Call) int64 {
	if call.Body == nil {
		return 0
	}
	return call.Length
}

// meansBody reports whether a request without a body should say so (RFC 9110
// 8.6).
func meansBody(method string) bool {
	switch method {
	case methodPost, "PUT", "PATCH":
		return true
	}
	return false
}

// trailer appends a trailer section.
func (e *encoder) trailer(f exchange.Fields) error {
	for i := range f {
		if err := e.field(f[i].Name, f[i].Value, trailerSection); err != nil {
			return err
		}
	}
	return nil
}

// decoder assembles field blocks. It bounds what they may hold, in frames, in
// bytes and decoded; the time is bounded by who feeds it. An error of write or
// end leaves the state that all blocks share undefined: it is the connection's
// end (RFC 9113 4.3). What is wrong with the fields alone is in malformed.
type decoder struct {
	hpack *hpack.Decoder

	// Of the block under way.
	pseudo    exchange.Fields // in order
	fields    exchange.Fields
	malformed string // why the message is; "" when it is not
	size      int
	bytes     int
	frames    int
	ordinary  bool // a field that is no pseudo-header has come
}

var (
	errBlockSize   = errors.New("field block too large")
	errBlockFrames = errors.New("too many CONTINUATION frames")
)

func newDecoder() *decoder {
	d := &decoder{}
	d.hpack = hpack.NewDecoder(4<<10, d.emit) // the default of SETTINGS_HEADER_TABLE_SIZE
	d.hpack.SetMaxStringLength(maxList)
	return d
}

// begin starts a block. Nothing is collected of a block that nobody wants, but
// it must be decoded all the same.
func (d *decoder) begin(wanted bool) {
	clear(d.fields) // the strings belong to whoever took them
	clear(d.pseudo)
	d.pseudo, d.fields = d.pseudo[:0], d.fields[:0]
	d.malformed, d.size, d.bytes, d.frames, d.ordinary = "", 0, 0, 0, false
	d.hpack.SetEmitEnabled(wanted)
}

// write takes the fragment of one frame.
func (d *decoder) write(fragment []byte) error {
	d.frames++
	d.bytes += len(fragment)
	if d.frames > 1+maxContinuations {
		return errBlockFrames
	}
	if d.bytes > maxBlock {
		return errBlockSize
	}
	_, err := d.hpack.Write(fragment)
	return err
}

// end completes the block.
func (d *decoder) end() error { return d.hpack.Close() }

// take returns a copy of the fields for the message.
func (d *decoder) take() exchange.Fields {
	if len(d.fields) == 0 {
		return nil
	}
	return append(make(exchange.Fields, 0, len(d.fields)), d.fields...)
}

// emit is called for each field. White space around a value must not be there
// (RFC 9113 8.2.1), but some servers send it, and curl and net/http take
// it: we do what RFC 9110 5.5 says of it, so that it reaches nobody behind us.
func (d *decoder) emit(f hpack.HeaderField) {
	d.size += len(f.Name) + len(f.Value) + fieldOverhead
	if !f.IsPseudo() {
		f.Value = trimSpace(f.Value)
	}
	switch {
	case d.size > maxList:
		d.refuse("header list too large")
	case f.IsPseudo():
		if d.ordinary {
			d.refuse("pseudo-header after a field")
			return
		}
		d.pseudo = append(d.pseudo, exchange.Field{Name: f.Name, Value: f.Value})
	case !validLowerName(f.Name):
		d.refuse("invalid field name")
	case !validValue(f.Value):
		d.refuse("invalid value of a field")
	default:
		d.ordinary = true
		if k := lookUp(f.Name).kind; k == hopByHop || k == onlyTE && f.Value != "trailers" {
			d.refuse("connection-specific field")
			return
		}
		d.fields = append(d.fields, exchange.Field{Name: f.Name, Value: f.Value})
	}
}

// refuse makes the message malformed and spares us the rest of it.
func (d *decoder) refuse(reason string) {
	d.malformed = reason
	d.hpack.SetEmitEnabled(false)
}

// head is the beginning of a reply.
type head struct {
	status int
	fields exchange.Fields
	length int64 // as declared; -1 when it is not
}

// responseHead makes a head of a decoded block (RFC 9113 8.3.2), or says what is
// wrong with it. A status of no class is no answer that anybody understands (RFC
// 9110 15: treat it as a 5xx).
func (d *decoder) responseHead() (h head, malformed string) {
	if d.malformed != "" {
		return h, d.malformed
	}
	if len(d.pseudo) != 1 || d.pseudo[0].Name != ":status" {
		return h, "pseudo-headers are not one :status"
	}
	status := d.pseudo[0].Value
	if len(status) != 3 || status[0] < '1' || status[0] > '5' || !digits(status) {
		return h, "invalid :status"
	}
	h.status = int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0')
	h.length = -1
	for v := range d.fields.Values("content-length") {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil || !digits(v) || h.length >= 0 && h.length != int64(n) {
			return h, "invalid content-length"
		}
		h.length = int64(n)
	}
	h.fields = d.take()
	return h, ""
}

// trailerFields makes a trailer section of a decoded block (RFC 9113 8.1), without
// the fields that may not be in one: those of framing, routing and authentication
// (RFC 9110 6.5.1).
func (d *decoder) trailerFields() (f exchange.Fields, malformed string) {
	if d.malformed == "" && len(d.pseudo) > 0 {
		return nil, "pseudo-header in a trailer"
	}
	f = slices.DeleteFunc(d.take(), func(x exchange.Field) bool { return !httpguts.ValidTrailerHeader(x.Name) })
	return f, d.malformed
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
