package modelserver

import (
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // RFC 6455, section 4.2.2 says SHA-1
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// Opcodes of websocket frames (RFC 6455, section 5.2).
const (
	OpContinuation = 0x0
	OpText         = 0x1
	OpBinary       = 0x2
	OpClose        = 0x8
	OpPing         = 0x9
	OpPong         = 0xA
)

// maxFrame bounds the payload of a frame.
const maxFrame = 16 << 20

// websocketGUID is part of every handshake (RFC 6455, section 1.3).
const websocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// Frame is one websocket frame. Tests use it for their side of /ws as well.
type Frame struct {
	Fin     bool
	Op      byte
	Payload []byte
}

// ReadFrame reads one frame and unmasks it. masked tells whether it was.
func ReadFrame(r io.Reader) (f Frame, masked bool, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, false, err
	}
	f.Fin, f.Op, masked = head[0]&0x80 != 0, head[0]&0x0F, head[1]&0x80 != 0
	if head[0]&0x70 != 0 {
		return f, masked, errors.New("modelserver: websocket frame with reserved bits")
	}
	size := uint64(head[1] & 0x7F)
	var long [8]byte
	switch size {
	case 126:
		_, err = io.ReadFull(r, long[6:])
		size = binary.BigEndian.Uint64(long[:])
	case 127:
		_, err = io.ReadFull(r, long[:])
		size = binary.BigEndian.Uint64(long[:])
	}
	if err != nil {
		return f, masked, fmt.Errorf("modelserver: websocket frame: %w", err)
	}
	if size > maxFrame {
		return f, masked, fmt.Errorf("modelserver: websocket frame of %d bytes", size)
	}
	var mask [4]byte
	if masked {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return f, masked, fmt.Errorf("modelserver: websocket frame: %w", err)
		}
	}
	f.Payload = make([]byte, size)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return f, masked, fmt.Errorf("modelserver: websocket frame: %w", err)
	}
	xor(f.Payload, mask)
	return f, masked, nil
}

// Bytes is the frame on the wire. A client must mask; the mask is constant.
func (f Frame) Bytes(masked bool) []byte {
	first := f.Op
	if f.Fin {
		first |= 0x80
	}
	out := []byte{first, 0}
	switch n := uint64(len(f.Payload)); {
	case n < 126:
		out[1] = byte(n)
	case n < 1<<16:
		out[1] = 126
		out = binary.BigEndian.AppendUint16(out, uint16(n))
	default:
		out[1] = 127
		out = binary.BigEndian.AppendUint64(out, n)
	}
	if !masked {
		return append(out, f.Payload...)
	}
	out[1] |= 0x80
	mask := [4]byte{0x12, 0x34, 0x56, 0x78}
	payload := bytes.Clone(f.Payload)
	xor(payload, mask)
	return append(append(out, mask[:]...), payload...)
}

func xor(p []byte, mask [4]byte) {
	for i := range p {
		p[i] ^= mask[i%4]
	}
}

// AcceptKey is the Sec-WebSocket-Accept that answers a Sec-WebSocket-Key.
func AcceptKey(key string) string {
	sum := sha1.Sum([]byte(key + websocketGUID)) //nolint:gosec // RFC 6455, section 4.2.2 says SHA-1
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (s *Server) websocket(w http.ResponseWriter, r *http.Request) {
	_, _, script := s.arrive(r)
	key := r.Header.Get("Sec-WebSocket-Key")
	if !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket") ||
		r.Header.Get("Sec-WebSocket-Version") != "13" || key == "" {
		w.Header().Set("Upgrade", "websocket")
		writeError(w, http.StatusUpgradeRequired, "this is a websocket (RFC 6455, section 4.1)")
		return
	}
	if script.Status >= http.StatusBadRequest {
		writeError(w, script.Status, "scripted")
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer func() { _ = conn.Close() }()
	if !s.track(conn) {
		return
	}
	defer s.untrack(conn)
	head := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		NameHeader + ": " + s.name + "\r\nSec-WebSocket-Accept: " + AcceptKey(key) + "\r\n"
	if protocol, _, _ := strings.Cut(r.Header.Get("Sec-WebSocket-Protocol"), ","); protocol != "" {
		head += "Sec-WebSocket-Protocol: " + strings.TrimSpace(protocol) + "\r\n"
	}
	out := []byte(head + "\r\n")
	if script.Greeting != "" {
		out = append(out, Frame{Fin: true, Op: OpText, Payload: []byte(script.Greeting)}.Bytes(false)...)
	}
	if _, err := conn.Write(out); err != nil || !echoFrames(conn, buf.Reader) {
		s.left(r, 0)
	}
}

// echoFrames sends frames back until the close frame and reports false if the
// client leaves without one.
func echoFrames(w io.Writer, r *bufio.Reader) bool {
	for {
		f, masked, err := ReadFrame(r)
		switch {
		case err != nil:
			return false
		case !masked: // RFC 6455, section 5.1; 1002 is a protocol error
			_, _ = w.Write(Frame{Fin: true, Op: OpClose, Payload: []byte{0x03, 0xEA}}.Bytes(false))
			return true
		case f.Op == OpPong:
			continue
		case f.Op == OpPing:
			f.Op = OpPong
		}
		if _, err := w.Write(f.Bytes(false)); err != nil {
			return false
		}
		if f.Op == OpClose {
			return true
		}
	}
}

// track makes Close end conn; it reports false when that has been called.
func (s *Server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.tunnels[conn] = struct{}{}
	return true
}

func (s *Server) untrack(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tunnels, conn)
}

// hasToken looks for a word in a comma-separated header.
func hasToken(h http.Header, name, word string) bool {
	for _, value := range h.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), word) {
				return true
			}
		}
	}
	return false
}
