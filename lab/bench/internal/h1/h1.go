// Package h1 is a small HTTP/1.1 message reader that the load generator and the
// model server of the lab share. It parses just enough to frame messages of
// peers that behave, and costs little: it is not a conforming implementation
// and must not face untrusted peers. edge's own parser is not used here, so
// that both ends of a measurement stay what they are when edge changes.
package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
)

// ErrHead reports a malformed or oversized message head.
var ErrHead = errors.New("h1: bad message head")

// Head is a parsed message head. The byte slices point into the reader's
// buffer and are valid until the next read.
type Head struct {
	Raw     []byte // start line and headers, with the blank line
	Line    []byte // start line, without CRLF
	Length  int64  // Content-Length, or -1 if absent
	Chunked bool
	Close   bool
}

// ReadHead reads one message head. The head must fit the reader's buffer. The
// error is io.EOF at the end of a connection, before any byte.
func ReadHead(br *bufio.Reader, h *Head) error {
	raw, err := peekHead(br)
	if err != nil {
		return err
	}
	if err := h.parse(raw); err != nil {
		return err
	}
	_, err = br.Discard(len(raw))
	return err
}

func peekHead(br *bufio.Reader) ([]byte, error) {
	for scanned := 0; ; {
		if br.Buffered() <= scanned {
			if scanned >= br.Size() {
				return nil, ErrHead
			}
			if _, err := br.Peek(scanned + 1); err != nil {
				if scanned > 0 && errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return nil, err
			}
		}
		buf, _ := br.Peek(br.Buffered())
		from := max(scanned-3, 0)
		if i := bytes.Index(buf[from:], []byte("\r\n\r\n")); i >= 0 {
			return buf[:from+i+4], nil
		}
		scanned = len(buf)
	}
}

func (h *Head) parse(raw []byte) error {
	*h = Head{Raw: raw, Length: -1}
	i := bytes.IndexByte(raw, '\n')
	if i < 1 {
		return ErrHead
	}
	h.Line = raw[:i-1]
	for rest := raw[i+1:]; len(rest) > 2; {
		i = bytes.IndexByte(rest, '\n')
		if i < 1 {
			return ErrHead
		}
		name, value, ok := bytes.Cut(rest[:i-1], []byte(":"))
		if !ok || len(name) == 0 {
			return ErrHead
		}
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
		rest = rest[i+1:]
	}
	return nil
}

// field takes what frames the message. Names are told apart by length first:
// most fields are none of these.
func (h *Head) field(name, value []byte) error {
	switch len(name) {
	case len("content-length"):
		if Fold(name, "content-length") {
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || n < 0 {
				return ErrHead
			}
			h.Length = n
		}
	case len("transfer-encoding"):
		if Fold(name, "transfer-encoding") {
			h.Chunked = Fold(value, "chunked")
		}
	case len("connection"):
		if Fold(name, "connection") {
			h.Close = h.Close || Fold(value, "close")
		}
	}
	return nil
}

// Fold reports whether b equals the lower-case ASCII string s, ignoring case.
func Fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range len(s) {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// maxChunkDigits keeps a chunk's size within an int64.
const maxChunkDigits = 15

func readChunkSize(br *bufio.Reader) (int64, error) {
	line, err := br.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	line, _, _ = bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(";"))
	if len(line) == 0 || len(line) > maxChunkDigits {
		return 0, ErrHead
	}
	n, err := strconv.ParseUint(string(line), 16, 63)
	if err != nil {
		return 0, ErrHead
	}
	return int64(n), nil
}

// Body reads the body that follows head, calling f with each run of bytes as
// it arrives, and leaves the reader at the next message. A message with
// neither a length nor chunks ends at EOF when toEOF is set, as a response
// does, and is empty otherwise. The bytes are valid until f returns. An error
// of f ends the reading and is returned.
func Body(br *bufio.Reader, h *Head, toEOF bool, f func([]byte) error) error {
	switch {
	case h.Chunked:
		return chunks(br, f)
	case h.Length >= 0:
		return runs(br, h.Length, f)
	case toEOF:
		return rest(br, f)
	}
	return nil
}

func chunks(br *bufio.Reader, f func([]byte) error) error {
	for {
		n, err := readChunkSize(br)
		if err != nil {
			return err
		}
		if err := runs(br, n, f); err != nil {
			return err
		}
		if _, err := br.Discard(2); err != nil || n == 0 { // no trailers expected
			return err
		}
	}
}

func runs(br *bufio.Reader, n int64, f func([]byte) error) error {
	for n > 0 {
		if _, err := br.Peek(1); err != nil {
			return err
		}
		b, _ := br.Peek(int(min(n, int64(br.Buffered()))))
		if err := f(b); err != nil {
			return err
		}
		n -= int64(len(b))
		if _, err := br.Discard(len(b)); err != nil {
			return err
		}
	}
	return nil
}

func rest(br *bufio.Reader, f func([]byte) error) error {
	for {
		if _, err := br.Peek(1); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := runs(br, int64(br.Buffered()), f); err != nil {
			return err
		}
	}
}

// Discard is a callback for Body that drops the bytes.
func Discard([]byte) error { return nil }
