package http2

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Whatever bytes make a block: what is taken of it keeps to the rules, and can be
// sent on.
func FuzzHeaderBlock(f *testing.F) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, x := range []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "content-length", Value: "5"}, {Name: "x", Value: strings.Repeat("y", 100)}} {
		_ = enc.WriteField(x)
	}
	f.Add(b.Bytes(), 3)
	f.Add([]byte{0x88, 0x3f, 0xe1, 0x1f, 0xbe}, 1)
	f.Add([]byte{0x00, 0x01, 'X', 0x01, ' '}, 0)
	f.Add([]byte("\x48\x033\x8e2\x00\x00"), 2)
	f.Fuzz(func(t *testing.T, block []byte, cut int) {
		d := newDecoder()
		for range 2 { // the second sees the table of the first
			d.begin(true)
			cut = max(0, min(cut, len(block)))
			if d.write(block[:cut]) != nil || d.write(block[cut:]) != nil || d.end() != nil {
				return
			}
			h, malformed := d.responseHead()
			if malformed != "" {
				continue
			}
			size := 0
			e := newEncoder()
			for _, x := range h.fields {
				size += len(x.Name) + len(x.Value) + fieldOverhead
				if !validLowerName(x.Name) || !validValue(x.Value) {
					t.Errorf("took %q", x)
				}
				if err := e.field(x.Name, x.Value, headSection); err != nil {
					t.Errorf("%q cannot be sent on: %v", x, err)
				}
			}
			if size > maxList || h.status < 100 || h.status > 999 || h.length < -1 {
				t.Errorf("took a list of %d bytes, status %d, length %d", size, h.status, h.length)
			}
			decodeAll(t, e.block)
		}
	})
}

// Whatever bytes a server sends: the call ends, in time and in memory that is
// bounded.
func FuzzServerFrames(f *testing.F) {
	record := func(do func(s *script)) {
		var b bytes.Buffer
		s := &script{Framer: h2.NewFramer(&b, nil)}
		s.AllowIllegalWrites = true
		s.enc = hpack.NewEncoder(&s.block)
		_ = s.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 100})
		_ = s.WriteSettingsAck()
		do(s)
		f.Add(b.Bytes())
	}
	record(func(s *script) {
		s.head(1, false, ":status", "103", "link", "x")
		s.head(1, false, ":status", "200", "content-length", "5")
		_ = s.WriteDataPadded(1, false, []byte("hel"), make([]byte, 3))
		s.text(1, false, "lo")
		s.head(1, true, "grpc-status", "0")
	})
	record(func(s *script) {
		_ = s.WriteWindowUpdate(1, 1<<20)
		_ = s.WriteWindowUpdate(0, 1<<20)
		s.head(1, true, ":status", "500")
		_ = s.WriteRSTStream(1, h2.ErrCodeNo)
	})
	record(func(s *script) {
		_ = s.WriteGoAway(0, h2.ErrCodeNo, []byte("bye"))
		_ = s.WritePing(false, [8]byte{})
		_ = s.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}})
		_ = s.WriteContinuation(1, true, nil)
	})
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{MaxConns: 1})
			begin := time.Now()
			call := p.call("/", strings.NewReader(strings.Repeat("x", 100<<10)), 100<<10)
			call.FirstByte = time.Minute
			done := p.begin(call)
			s := accept()
			go func() { _, _ = io.Copy(io.Discard, s.nc) }()
			_, err := s.nc.Write(sent)
			if err == nil {
				synctest.Wait()
				_ = s.nc.Close()
			}
			o := <-done
			if o.err == nil && o.rerr == nil && o.reply.Length >= 0 && o.reply.Length != int64(len(o.body)) {
				t.Errorf("declared %d, got %d", o.reply.Length, len(o.body))
			}
			if o.err == nil && (o.reply.Status < 200 || o.reply.Status > 999) {
				t.Errorf("status %d", o.reply.Status)
			}
			if d := time.Since(begin); d > 3*time.Minute {
				t.Errorf("ended after %v", d)
			}
			if len(o.body) > len(sent) {
				t.Error(fmt.Sprintf("%d bytes of a body", len(o.body)), "came of", len(sent))
			}
		})
	})
}
