package http2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"edge/internal/memnet"
	"edge/proxy/exchange"
)

// script is a server that does what a test tells it, frame by frame.
type script struct {
	testing.TB
	*h2.Framer
	nc    net.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
	dec   *hpack.Decoder
	last  exchange.Fields // of the HEADERS read last
	data  []byte          // of all DATA read
}

// scripted returns a Client and what accepts its connections, inside a bubble.
func scripted(tb testing.TB, o Options) (*peer, func() *script) {
	tb.Helper()
	var n memnet.Network
	l, err := n.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &peer{scheme: "http", host: "models.test"}
	p.Client = NewClient(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "tcp", l.Addr().String()) }, o)
	tb.Cleanup(func() { p.Close(); l.Close() })
	p.accept = func() *script {
		tb.Helper()
		nc, err := l.Accept()
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { nc.Close() })
		s := &script{TB: tb, nc: nc, Framer: h2.NewFramer(nc, nc)}
		s.AllowIllegalReads, s.AllowIllegalWrites = true, true
		s.enc = hpack.NewEncoder(&s.block)
		s.dec = hpack.NewDecoder(4096, func(f hpack.HeaderField) { s.last.Add(f.Name, f.Value) })
		return s
	}
	return p, p.accept
}

// preface reads that of the client and sends ours.
func (s *script) preface(settings ...h2.Setting) {
	s.Helper()
	b := make([]byte, len(h2.ClientPreface))
	if _, err := io.ReadFull(s.nc, b); err != nil || string(b) != h2.ClientPreface {
		s.Fatalf("preface %q, %v", b, err)
	}
	_ = s.WriteSettings(settings...)
	_ = s.WriteSettingsAck()
}

// next reads a frame and describes it.
func (s *script) next() string {
	frame, err := s.ReadFrame()
	if err != nil {
		return "end"
	}
	id := frame.Header().StreamID
	end := ""
	switch f := frame.(type) {
	case *h2.HeadersFrame:
		s.last = nil
		if f.StreamEnded() {
			end = " END"
		}
		_, _ = s.dec.Write(f.HeaderBlockFragment())
		if f.HeadersEnded() {
			_ = s.dec.Close()
		}
		return fmt.Sprintf("HEADERS %d%s", id, end)
	case *h2.ContinuationFrame:
		_, _ = s.dec.Write(f.HeaderBlockFragment())
		if f.HeadersEnded() {
			_ = s.dec.Close()
		}
		return fmt.Sprintf("CONTINUATION %d", id)
	case *h2.DataFrame:
		if f.StreamEnded() {
			end = " END"
		}
		s.data = append(s.data, f.Data()...)
		return fmt.Sprintf("DATA %d %d%s", id, len(f.Data()), end)
	case *h2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM %d %s", id, f.ErrCode)
	case *h2.GoAwayFrame:
		return fmt.Sprintf("GOAWAY %s", f.ErrCode)
	case *h2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE %d %d", id, f.Increment)
	case *h2.PingFrame:
		if !f.IsAck() {
			_ = h2.NewFramer(s.nc, nil).WritePing(true, f.Data) // the test may be writing
			return "PING"
		}
		return "PING ACK"
	case *h2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ACK"
		}
		return "SETTINGS"
	}
	return frame.Header().String()
}

// await reads frames up to the one that is wanted, and fails when it does not
// come.
func (s *script) await(want string) {
	s.Helper()
	var seen []string
	for {
		got := s.next()
		seen = append(seen, got)
		if got == want {
			return
		}
		if got == "end" {
			s.Fatalf("no %s, but %q", want, seen)
		}
	}
}

// head sends HEADERS with fields given as names and values in turn.
func (s *script) head(id uint32, end bool, pairs ...string) {
	_ = s.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: s.encode(pairs...), EndHeaders: true, EndStream: end})
}

func (s *script) encode(pairs ...string) []byte {
	s.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return s.block.Bytes()
}

func (s *script) text(id uint32, end bool, text string) { _ = s.WriteData(id, end, []byte(text)) }

// outcome is what a call has come to.
type outcome struct {
	reply exchange.Reply
	err   error // of Do
	body  string
	rerr  error // of reading, nil at the end
}

// begin does the call and reads its reply, beside the test.
func (p *peer) begin(call *exchange.Call) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		if o.reply, o.err = p.Do(call); o.err == nil {
			var body []byte
			body, o.rerr = io.ReadAll(o.reply.Body)
			o.body = string(body)
			_ = o.reply.Body.Close()
		}
		done <- o
	}()
	return done
}

// get1 begins a GET and returns its server when the request is there.
func get1(tb testing.TB) (*peer, *script, <-chan outcome) {
	tb.Helper()
	p, accept := scripted(tb, Options{})
	done := p.begin(p.call("/", nil, 0))
	s := accept()
	s.preface()
	s.await("HEADERS 1 END")
	return p, s, done
}

// lostError checks that err is a LostError and returns it.
func lostError(tb testing.TB, err error) exchange.LostError {
	tb.Helper()
	var lost *exchange.LostError
	if !errors.As(err, &lost) {
		tb.Fatalf("got %v, want a LostError", err)
	}
	return *lost
}

func TestHeadOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		call := p.call("/v1/chat?x=1", strings.NewReader("hello"), 5)
		call.Header = exchange.Fields{
			{Name: "Content-Type", Value: "application/json"},
			{Name: "X-Mixed-CASE", Value: "\tspaced "},
			{Name: "Cookie", Value: "a=1"},
			{Name: "Host", Value: "other"},
			{Name: "Content-Length", Value: "9"},
			{Name: "Transfer-Encoding", Value: "chunked"},
			{Name: "Connection", Value: "x"},
			{Name: "Keep-Alive", Value: "x"},
			{Name: "Proxy-Connection", Value: "x"},
			{Name: "Upgrade", Value: "h2c"},
			{Name: "Expect", Value: "100-continue"},
			{Name: "Trailer", Value: "x"},
			{Name: "TE", Value: "gzip"},
			{Name: "te", Value: "Trailers"},
			{Name: "x-empty", Value: ""},
		}
		done := p.begin(call)
		s := accept()
		s.preface()
		s.await("HEADERS 1")
		want := exchange.Fields{
			{Name: ":method", Value: "POST"},
			{Name: ":scheme", Value: "http"},
			{Name: ":path", Value: "/v1/chat?x=1"},
			{Name: ":authority", Value: "models.test"},
			{Name: "content-type", Value: "application/json"},
			{Name: "x-mixed-case", Value: "spaced"},
			{Name: "cookie", Value: "a=1"},
			{Name: "te", Value: "Trailers"},
			{Name: "x-empty", Value: ""},
			{Name: "content-length", Value: "5"},
		}
		if fmt.Sprint(s.last) != fmt.Sprint(want) {
			t.Errorf("got  %v\nwant %v", s.last, want)
		}
		s.await("DATA 1 5 END")
		s.head(1, true, ":status", "204")
		if o := <-done; o.err != nil || o.reply.Status != 204 || o.reply.Length != 0 || o.rerr != nil {
			t.Errorf("got %+v", o)
		}
		// The second one has everything in tables of ours only.
		call = p.call("*", nil, 0)
		call.Method, call.Host = "OPTIONS", ""
		done = p.begin(call)
		s.await("HEADERS 3 END")
		if got := fmt.Sprint(s.last); got != "[{:method OPTIONS} {:scheme http} {:path *}]" {
			t.Errorf("got %v", got)
		}
		s.head(3, true, ":status", "200")
		<-done
	})
}

func TestWhatCannotBeSent(t *testing.T) {
	p := &peer{Client: NewClient(func(context.Context) (net.Conn, error) {
		t.Error("dialled")
		return nil, io.EOF
	}, Options{}), scheme: "http", host: "models.test"}
	for name, change := range map[string]func(*exchange.Call){
		"websocket":          func(c *exchange.Call) { c.Upgrade = true },
		"CONNECT":            func(c *exchange.Call) { c.Method = "CONNECT" },
		"method":             func(c *exchange.Call) { c.Method = "G T" },
		"no method":          func(c *exchange.Call) { c.Method = "" },
		"absolute target":    func(c *exchange.Call) { c.Target = "http://x/" },
		"target with space":  func(c *exchange.Call) { c.Target = "/a b" },
		"* of GET":           func(c *exchange.Call) { c.Target = "*" },
		"scheme":             func(c *exchange.Call) { c.Scheme = "ftp" },
		"userinfo":           func(c *exchange.Call) { c.Host = "me@x" },
		"authority":          func(c *exchange.Call) { c.Host = "a\r\nb" },
		"host not ASCII":     func(c *exchange.Call) { c.Host = "bücher.example" },
		"field name":         func(c *exchange.Call) { c.Header.Add("a b", "x") },
		"pseudo-header":      func(c *exchange.Call) { c.Header.Add(":path", "/x") },
		"empty name":         func(c *exchange.Call) { c.Header.Add("", "x") },
		"name of bytes":      func(c *exchange.Call) { c.Header.Add("é", "x") },
		"value with newline": func(c *exchange.Call) { c.Header.Add("x", "a\nb") },
		"value with NUL":     func(c *exchange.Call) { c.Header.Add("x", "a\x00b") },
	} {
		call := p.call("/", nil, 0)
		change(call)
		if _, err := p.Do(call); !errors.Is(err, exchange.ErrUnsendable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What breaks the rules for a connection ends it, with a code that says why.
func TestConnectionErrors(t *testing.T) {
	raw := func(s *script, t h2.FrameType, flags h2.Flags, id uint32, payload ...byte) {
		_ = s.WriteRawFrame(t, flags, id, payload)
	}
	for _, test := range []struct {
		name string
		code h2.ErrCode
		do   func(s *script)
	}{
		{"4.2 frame too large", h2.ErrCodeFrameSize, func(s *script) { _, _ = s.nc.Write([]byte("\x00\x40\x01\x00\x00\x00\x00\x00\x01")) }},
		{"4.3 block that cannot be decoded", h2.ErrCodeCompression, func(s *script) {
			raw(s, h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		}},
		{"4.3 block that breaks off", h2.ErrCodeCompression, func(s *script) { raw(s, h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0x00, 0x05, 'x') }},
		{"4.3.1 table larger than ours", h2.ErrCodeCompression, func(s *script) { raw(s, h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0x3f, 0xe2, 0x1f) }},
		{"5.1 DATA of an idle stream", h2.ErrCodeProtocol, func(s *script) { s.text(3, true, "x") }},
		{"5.1 HEADERS of an idle stream", h2.ErrCodeProtocol, func(s *script) { s.head(5, true, ":status", "200") }},
		{"5.1 WINDOW_UPDATE of an idle stream", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteWindowUpdate(7, 1) }},
		{"5.1 RST_STREAM of an idle stream", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteRSTStream(9, 0) }},
		{"5.1.1 stream of the server", h2.ErrCodeProtocol, func(s *script) { s.head(2, true, ":status", "200") }},
		{"6.1 DATA of stream 0", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FrameData, 0, 0, 'x') }},
		{"6.1 padding without length", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameData, h2.FlagDataPadded, 1) }},
		{"6.1 more padding than frame", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FrameData, h2.FlagDataPadded, 1, 2, 0) }},
		{"6.2 HEADERS of stream 0", h2.ErrCodeProtocol, func(s *script) { s.head(0, true, ":status", "200") }},
		{"6.2 HEADERS shorter than its flags", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameHeaders, h2.FlagHeadersPadded, 1) }},
		{"6.2 HEADERS with too much padding", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FrameHeaders, h2.FlagHeadersPadded|h2.FlagHeadersEndHeaders, 1, 9, 0x88) }},
		{"6.2 something within a block", h2.ErrCodeProtocol, func(s *script) {
			raw(s, h2.FrameHeaders, 0, 1, 0x88)
			_ = s.WritePing(false, [8]byte{})
		}},
		{"6.3 PRIORITY of wrong size", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FramePriority, 0, 1, 0) }},
		{"6.4 RST_STREAM of stream 0", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteRSTStream(0, 0) }},
		{"6.4 RST_STREAM of wrong size", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameRSTStream, 0, 1, 0) }},
		{"6.5 SETTINGS of a stream", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FrameSettings, 0, 1) }},
		{"6.5 SETTINGS of wrong size", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameSettings, 0, 0, 1) }},
		{"6.5 ACK with settings", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameSettings, h2.FlagSettingsAck, 0, 0, 1, 0, 0, 0, 0) }},
		{"6.5.2 ENABLE_PUSH", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteSettings(h2.Setting{ID: h2.SettingEnablePush, Val: 1}) }},
		{"6.5.2 window too large", h2.ErrCodeFlowControl, func(s *script) {
			_ = s.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1}, h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 31})
		}},
		{"6.5.2 MAX_FRAME_SIZE of 0", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 0}) }},
		{"6.5.2 MAX_FRAME_SIZE too large", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 1 << 24}) }},
		{"6.6 PUSH_PROMISE", h2.ErrCodeProtocol, func(s *script) {
			_ = s.WritePushPromise(h2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}},
		{"6.7 PING of wrong size", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FramePing, 0, 0, 1) }},
		{"6.7 PING of a stream", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FramePing, 0, 1, make([]byte, 8)...) }},
		{"6.8 GOAWAY of a stream", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FrameGoAway, 0, 1, make([]byte, 8)...) }},
		{"6.8 GOAWAY too short", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameGoAway, 0, 0, 0) }},
		{"6.9 WINDOW_UPDATE of 0", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteWindowUpdate(0, 0) }},
		{"6.9 WINDOW_UPDATE of wrong size", h2.ErrCodeFrameSize, func(s *script) { raw(s, h2.FrameWindowUpdate, 0, 0, 1) }},
		{"6.9.1 window of the connection overflows", h2.ErrCodeFlowControl, func(s *script) { _ = s.WriteWindowUpdate(0, 1<<31-1) }},
		{"6.9.2 window of a stream overflows by SETTINGS", h2.ErrCodeFlowControl, func(s *script) {
			_ = s.WriteWindowUpdate(1, 1<<30)
			_ = s.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1<<31 - 1})
		}},
		{"6.10 CONTINUATION alone", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteContinuation(1, true, nil) }},
		{"6.10 CONTINUATION of another stream", h2.ErrCodeProtocol, func(s *script) {
			raw(s, h2.FrameHeaders, 0, 1, 0x88)
			_ = s.WriteContinuation(3, true, nil)
		}},
		{"10.5 endless CONTINUATION", h2.ErrCodeEnhanceYourCalm, func(s *script) {
			raw(s, h2.FrameHeaders, 0, 1, 0x88)
			for range maxContinuations + 1 {
				_ = s.WriteContinuation(1, false, nil)
			}
		}},
		{"10.5 block too large", h2.ErrCodeEnhanceYourCalm, func(s *script) {
			raw(s, h2.FrameHeaders, 0, 1, 0x88)
			for range maxContinuations {
				_ = s.WriteContinuation(1, false, bytes.Repeat([]byte{0x88}, 16384))
			}
		}},
		{"10.5 string too long", h2.ErrCodeCompression, func(s *script) {
			raw(s, h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, 0x00, 0x01, 'x', 0x7f, 0x82, 0xff, 0x03)
		}},
		{"RFC 9218 PRIORITY_UPDATE", h2.ErrCodeProtocol, func(s *script) { raw(s, h2.FramePriorityUpdate, 0, 0, 0, 0, 0, 1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, s, done := get1(t)
				go test.do(s) // the client may have stopped to read
				s.await("GOAWAY " + test.code.String())
				s.await("end")
				o := <-done
				if lost := lostError(t, o.err); !errors.Is(o.err, exchange.ErrInvalidReply) || lost.Unsent || lost.Closed {
					t.Errorf("got %+v", lost)
				}
			})
		})
	}
}

// What breaks the rules for a reply ends its stream and no other.
func TestStreamErrors(t *testing.T) {
	ok := func(s *script, pairs ...string) { s.head(1, false, append([]string{":status", "200"}, pairs...)...) }
	bad := func(pairs ...string) func(s *script) {
		return func(s *script) { s.head(1, true, pairs...) }
	}
	for _, test := range []struct {
		name string
		code h2.ErrCode
		do   func(s *script)
	}{
		{"6.9 WINDOW_UPDATE of 0", h2.ErrCodeProtocol, func(s *script) { _ = s.WriteWindowUpdate(1, 0) }},
		{"6.9.1 window overflows", h2.ErrCodeFlowControl, func(s *script) { _ = s.WriteWindowUpdate(1, 1<<31-1) }},
		{"6.9 more than the window", h2.ErrCodeFlowControl, func(s *script) {
			ok(s)
			for range 17 { // nobody reads: it is one more than fits
				s.text(1, false, strings.Repeat("x", 16384))
			}
		}},
		{"8.1 body before the head", h2.ErrCodeProtocol, func(s *script) { s.text(1, false, "x") }},
		{"8.1 second head", h2.ErrCodeProtocol, func(s *script) { ok(s); ok(s) }},
		{"8.1 pseudo-header in a trailer", h2.ErrCodeProtocol, func(s *script) { ok(s); s.head(1, true, ":status", "200") }},
		{"8.1 interim reply that ends", h2.ErrCodeProtocol, bad(":status", "103")},
		{"8.1.1 longer than declared", h2.ErrCodeProtocol, func(s *script) { ok(s, "content-length", "1"); s.text(1, false, "xx") }},
		{"8.1.1 shorter than declared", h2.ErrCodeProtocol, func(s *script) { ok(s, "content-length", "3"); s.text(1, true, "xx") }},
		{"8.1.1 shorter, and a trailer", h2.ErrCodeProtocol, func(s *script) {
			ok(s, "content-length", "3")
			s.text(1, false, "xx")
			s.head(1, true, "a", "b")
		}},
		{"8.1.1 nothing of what is declared", h2.ErrCodeProtocol, bad(":status", "200", "content-length", "1")},
		{"8.1.1 two lengths", h2.ErrCodeProtocol, bad(":status", "200", "content-length", "0", "content-length", "1")},
		{"8.1.1 length with a sign", h2.ErrCodeProtocol, bad(":status", "200", "content-length", "+0")},
		{"8.1.1 empty length", h2.ErrCodeProtocol, bad(":status", "200", "content-length", "")},
		{"8.2.1 upper case", h2.ErrCodeProtocol, bad(":status", "200", "X-Upper", "1")},
		{"8.2.1 name with a space", h2.ErrCodeProtocol, bad(":status", "200", "a b", "1")},
		{"8.2.1 empty name", h2.ErrCodeProtocol, bad(":status", "200", "", "1")},
		{"8.2.1 name with a colon", h2.ErrCodeProtocol, bad(":status", "200", "a:b", "1")},
		{"8.2.1 value with CR", h2.ErrCodeProtocol, bad(":status", "200", "a", "b\rc")},
		{"8.2.1 value with NUL", h2.ErrCodeProtocol, bad(":status", "200", "a", "b\x00")},
		{"8.2.1 invalid trailer", h2.ErrCodeProtocol, func(s *script) { ok(s); s.head(1, true, "A", "b") }},
		{"8.2.2 connection", h2.ErrCodeProtocol, bad(":status", "200", "connection", "close")},
		{"8.2.2 transfer-encoding", h2.ErrCodeProtocol, bad(":status", "200", "transfer-encoding", "chunked")},
		{"8.2.2 te", h2.ErrCodeProtocol, bad(":status", "200", "te", "gzip")},
		{"8.3 pseudo-header after a field", h2.ErrCodeProtocol, bad("a", "b", ":status", "200")},
		{"8.3 unknown pseudo-header", h2.ErrCodeProtocol, bad(":status", "200", ":x", "1")},
		{"8.3 pseudo-header of requests", h2.ErrCodeProtocol, bad(":method", "GET")},
		{"8.3.2 no status", h2.ErrCodeProtocol, bad("a", "b")},
		{"8.3.2 empty block", h2.ErrCodeProtocol, bad()},
		{"8.3.2 two of status", h2.ErrCodeProtocol, bad(":status", "200", ":status", "200")},
		{"8.3.2 status of four digits", h2.ErrCodeProtocol, bad(":status", "2000")},
		{"8.3.2 status of letters", h2.ErrCodeProtocol, bad(":status", "2o0")},
		{"8.3.2 status below 100", h2.ErrCodeProtocol, bad(":status", "099")},
		{"8.6 status 101", h2.ErrCodeProtocol, func(s *script) { s.head(1, false, ":status", "101") }},
		{"9110 15.2 too many interim replies", h2.ErrCodeProtocol, func(s *script) {
			for range maxInterim + 1 {
				s.head(1, false, ":status", "103")
			}
		}},
		{"9110 15.3.5 body of 204", h2.ErrCodeProtocol, func(s *script) { s.head(1, false, ":status", "204"); s.text(1, true, "x") }},
		{"10.5.1 list too large", h2.ErrCodeProtocol, func(s *script) {
			s.head(1, true, ":status", "200", "x", strings.Repeat("x", 4000))
			b := append([]byte{0x88}, bytes.Repeat([]byte{0xbe}, 17)...) // the entry of 4 KB again and again
			_ = s.WriteHeaders(h2.HeadersFrameParam{StreamID: 3, BlockFragment: b, EndHeaders: true, EndStream: true})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, accept := scripted(t, Options{})
				id := uint32(1)
				call := p.call("/", nil, 0)
				done := make(chan error, 1)
				slow := make(chan struct{})
				do := func() {
					reply, err := p.Do(call)
					if err == nil {
						<-slow
						_, err = io.Copy(io.Discard, reply.Body)
					}
					done <- err
				}
				go do()
				s := accept()
				s.preface()
				s.await("HEADERS 1 END")
				if strings.HasPrefix(test.name, "10.5.1") { // it needs two
					id = 3
					call2 := p.begin(p.call("/", nil, 0))
					s.await("HEADERS 3 END")
					test.do(s)
					o := <-call2
					lostError(t, o.err)
				} else {
					test.do(s)
				}
				s.await(fmt.Sprintf("RST_STREAM %d %s", id, test.code))
				close(slow)
				if id == 1 {
					err := <-done
					if lost := lostError(t, err); !errors.Is(err, exchange.ErrInvalidReply) || lost.Unsent {
						t.Errorf("got %+v", lost)
					}
				} else {
					<-done
				}
				other := p.begin(p.call("/", nil, 0))
				s.await(fmt.Sprintf("HEADERS %d END", id+2))
				s.head(id+2, true, ":status", "200")
				if o := <-other; o.err != nil || o.rerr != nil {
					t.Errorf("another stream: %+v", o)
				}
			})
		})
	}
}

func TestServerOfAnotherProtocol(t *testing.T) {
	for text, want := range map[string]string{
		"HTTP/1.1 400 Bad Request\r\n\r\n":                      "the server speaks HTTP/1.1",
		"HTTP/1.0 400 Bad Request\r\n\r\n":                      "the server speaks HTTP/1.1",
		"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678":          "does not speak HTTP/2",
		"\x00\x00\x00\x04\x01\x00\x00\x00\x00":                  "does not speak HTTP/2",
		"220 mail.test ESMTP ready, say hello to the world\r\n": "does not speak HTTP/2",
	} {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{})
			done := p.begin(p.call("/", nil, 0))
			s := accept()
			if _, err := io.ReadFull(s.nc, make([]byte, len(h2.ClientPreface))); err != nil {
				t.Fatal(err)
			}
			s.await("HEADERS 1 END")
			_, _ = io.WriteString(s.nc, text)
			o := <-done
			if lost := lostError(t, o.err); !errors.Is(o.err, exchange.ErrInvalidReply) || !strings.Contains(lost.Error(), want) {
				t.Errorf("%q: got %v", text, o.err)
			}
		})
	}
}

func TestInterimRepliesAndTrailers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		call := p.call("/", nil, 0)
		var interim []string
		call.Interim = func(status int, f exchange.Fields) { interim = append(interim, fmt.Sprint(status, f)) }
		done := p.begin(call)
		s := accept()
		s.preface()
		s.await("HEADERS 1 END")
		s.head(1, false, ":status", "103", "link", "a")
		s.head(1, false, ":status", "103", "link", "b")
		s.head(1, false, ":status", "200", "content-type", "text/plain", "x", "1", "x", "2")
		s.text(1, false, "one ")
		s.text(1, false, "")
		_ = s.WriteDataPadded(1, false, []byte("two"), make([]byte, 7))
		s.head(1, true, "grpc-status", "0")
		o := <-done
		if fmt.Sprint(interim) != "[103 [{link a}] 103 [{link b}]]" {
			t.Errorf("interim %v", interim)
		}
		if o.err != nil || o.rerr != nil || o.body != "one two" || fmt.Sprint(o.reply.Body.Trailer()) != "[{grpc-status 0}]" {
			t.Errorf("got %+v, trailer %v", o, o.reply.Body.Trailer())
		}
		if got := fmt.Sprint(o.reply.Header, o.reply.Length); got != "[{content-type text/plain} {x 1} {x 2}] -1" {
			t.Errorf("head %s", got)
		}
		// Head and trailer in one, as gRPC sends errors.
		done = p.begin(p.call("/", nil, 0))
		s.await("HEADERS 3 END")
		s.head(3, true, ":status", "200", "grpc-status", "5")
		if o := <-done; o.err != nil || o.rerr != nil || o.reply.Header.Get("grpc-status") != "5" || o.reply.Length != 0 {
			t.Errorf("got %+v", o)
		}
		// What a GET would have had.
		call = p.call("/", nil, 0)
		call.Method = "HEAD"
		done = p.begin(call)
		s.await("HEADERS 5 END")
		s.head(5, true, ":status", "200", "content-length", "1000")
		if o := <-done; o.err != nil || o.rerr != nil || o.reply.Length != 1000 {
			t.Errorf("got %+v", o)
		}
	})
}

func TestSilenceBeforeTheHead(t *testing.T) {
	for _, patience := range []time.Duration{10 * time.Millisecond, 3 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{})
			begin := time.Now()
			call := p.call("/", nil, 0)
			call.FirstByte = patience
			done := p.begin(call)
			s := accept()
			s.preface()
			go func() {
				for s.next() != "end" {
					continue
				}
			}()
			if o := <-done; !errors.Is(o.err, exchange.ErrFirstByte) || time.Since(begin) != patience {
				t.Errorf("%v after %v, want it after %v", o.err, time.Since(begin), patience)
			}
		})
	}
}
