package model

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // RFC 6455 asks for it
	"encoding/base64"
	"encoding/binary"
	"io"

	"edge/lab/bench/internal/h1"
)

// websocket switches protocols (RFC 6455) and echoes masked frames of up to
// 64 KiB unmasked, until a close frame, a longer one or the end.
func (c *conn) websocket(h *h1.Head) {
	key := ""
	for line := range bytes.Lines(h.Raw) {
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && h1.Fold(name, "sec-websocket-key") {
			key = string(bytes.TrimSpace(value))
		}
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // RFC 6455 section 4.2.2
	_, err := io.WriteString(c.c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
		base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
	for err == nil {
		err = c.echoFrame()
	}
}

func (c *conn) echoFrame() error {
	head, err := c.br.Peek(2)
	if err != nil {
		return err
	}
	op, n, skip := head[0], int(head[1]&0x7f), 2
	switch n {
	case 127:
		return io.ErrShortBuffer
	case 126:
		if head, err = c.br.Peek(4); err != nil {
			return err
		}
		n, skip = int(binary.BigEndian.Uint16(head[2:])), 4
	}
	if _, err = c.br.Discard(skip); err != nil {
		return err
	}
	var mask [4]byte
	if _, err = io.ReadFull(c.br, mask[:]); err != nil {
		return err
	}
	b := c.out[:0]
	b = append(b, op)
	if skip == 2 {
		b = append(b, byte(n))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	}
	at := len(b)
	b = append(b, make([]byte, n)...)
	if _, err = io.ReadFull(c.br, b[at:]); err != nil {
		return err
	}
	for i := range n {
		b[at+i] ^= mask[i&3]
	}
	c.out = b
	if _, err = c.c.Write(b); err != nil {
		return err
	}
	if op&0xf == 8 { // close
		return io.EOF
	}
	return nil
}
