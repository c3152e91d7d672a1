package upstream_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"edge/config"
)

// Frame types and flags of RFC 9113 6, as bytes of what a liar says.
const (
	fData, fHeaders, fPriority, fReset, fSettings = 0, 1, 2, 3, 4
	fPush, fPing, fGoAway, fWindow, fContinuation = 5, 6, 7, 8, 9

	endStream, endHeaders, padded, prioritized, ack = 1, 4, 8, 0x20, 1
	endBoth                                         = endStream | endHeaders
)

// Settings of RFC 9113 6.5.2.
const (
	sTable, sPush, sStreams, sWindow, sFrame, sList = 1, 2, 3, 4, 5, 6
)

// frame is one frame; payload may be anything.
func frame(kind, flags byte, stream uint32, payload string) string {
	n := len(payload)
	head := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	return string(binary.BigEndian.AppendUint32(head, stream)) + payload
}

func u32(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }

// block encodes fields as literals that leave the dynamic table alone (RFC 7541
// 6.2.2).
func block(fields ...string) string {
	b := make([]byte, 0, 128)
	for i, s := range fields {
		if i%2 == 0 {
			b = append(b, 0)
		}
		b = appendInt(b, 0, 7, len(s))
		b = append(b, s...)
	}
	return string(b)
}

// appendInt encodes an integer with a prefix of n bits (RFC 7541 5.1).
func appendInt(b []byte, first byte, n, v int) []byte {
	limit := 1<<n - 1
	if v < limit {
		return append(b, first|byte(v))
	}
	b = append(b, first|byte(limit))
	for v -= limit; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// setting is a SETTINGS frame of pairs.
func setting(pairs ...uint32) string {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = binary.BigEndian.AppendUint16(b, uint16(pairs[i]))
		b = binary.BigEndian.AppendUint32(b, pairs[i+1])
	}
	return frame(fSettings, 0, 0, string(b))
}

// head2 is a reply's head on stream 1 that a body follows, final one without.
func head2(fields ...string) string { return frame(fHeaders, endHeaders, 1, block(fields...)) }

func final2(fields ...string) string { return frame(fHeaders, endBoth, 1, block(fields...)) }

func data2(s string) string    { return frame(fData, 0, 1, s) }
func lastData(s string) string { return frame(fData, endStream, 1, s) }

func reset(code http2.ErrCode) string { return frame(fReset, 0, 1, u32(uint32(code))) }

func goAway(lastStream uint32, code http2.ErrCode) string {
	return frame(fGoAway, 0, 0, u32(lastStream)+u32(uint32(code)))
}

const greeting2 = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // an empty SETTINGS frame

// okay is a whole reply.
func okay() string { return head2(":status", "200") + lastData("ok") }

// h2server is the honest part of one connection.
type h2server struct {
	*liar
	conn   net.Conn
	mu     sync.Mutex // held for each write
	framer *http2.Framer
	first  bool
	open   map[uint32]string // path by stream, until its request is complete
}

// sees books how the client ends the connection that was lied on.
func (h *h2server) sees(how string) {
	if h.first {
		h.ended(how)
	}
}

// speakH2 reads requests properly and answers as the lie says. What it lies
// runs beside the reading, so that a client which answers to it is heard.
func speakH2(s *liar, c net.Conn, first bool) {
	h := &h2server{liar: s, conn: c, first: first, open: map[uint32]string{}}
	greeting := []step{say(greeting2)}
	if s.lie != nil && first && s.lie.greeting != nil {
		greeting = s.lie.greeting
	}
	if h.turn().run(greeting) != nil {
		return
	}
	r := bufio.NewReader(c)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(r, preface); err != nil || string(preface) != http2.ClientPreface {
		return
	}
	h.framer = http2.NewFramer(io.Discard, r)
	h.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := h.framer.ReadFrame()
		if err != nil || h.take(f) != nil {
			return
		}
	}
}

func (h *h2server) turn() *turn {
	return &turn{server: h.liar, conn: h.conn, write: h.write}
}

func (h *h2server) write(s string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.conn, s)
	return err
}

func (h *h2server) take(f http2.Frame) error {
	id := f.Header().StreamID
	mute, stingy := h.lie != nil && h.lie.mute, h.lie != nil && h.lie.stingy
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() && !mute {
			return h.write(frame(fSettings, ack, 0, ""))
		}
	case *http2.PingFrame:
		if !f.IsAck() && !mute {
			return h.write(frame(fPing, ack, 0, string(f.Data[:])))
		}
	case *http2.GoAwayFrame:
		h.sees("GOAWAY " + f.ErrCode.String())
	case *http2.RSTStreamFrame:
		if id == 1 {
			h.sees("RST " + f.ErrCode.String())
		}
	case *http2.MetaHeadersFrame:
		return h.request(id, f)
	case *http2.DataFrame:
		if n := f.Header().Length; n > 0 && !stingy {
			if err := h.write(frame(fWindow, 0, 0, u32(n)) + frame(fWindow, 0, id, u32(n))); err != nil {
				return err
			}
		}
		if f.StreamEnded() {
			return h.complete(id)
		}
	}
	return nil
}

// request begins a request, or ends it with trailers.
func (h *h2server) request(id uint32, f *http2.MetaHeadersFrame) error {
	if path := f.PseudoValue("path"); path != "" {
		h.open[id] = path
		if path == "/case" && h.lie != nil && h.lie.early {
			return h.lieOn(id)
		}
	}
	if f.StreamEnded() {
		return h.complete(id)
	}
	return nil
}

func (h *h2server) complete(id uint32) error {
	path, known := h.open[id]
	delete(h.open, id)
	switch {
	case !known: // lied to already
		return nil
	case path == "/case":
		return h.lieOn(id)
	}
	return h.answer(id, "next")
}

func (h *h2server) lieOn(id uint32) error {
	delete(h.open, id)
	n := h.seen.Add(1)
	if !h.lies(n) {
		return h.answer(id, "again")
	}
	if id != 1 {
		h.ended(fmt.Sprintf("stream %d, the table wants 1", id))
		return io.ErrUnexpectedEOF
	}
	if h.lie.deaf {
		return h.turn().tell()
	}
	h.running.Go(func() { _ = h.turn().tell() })
	return nil
}

func (h *h2server) answer(id uint32, body string) error {
	return h.write(frame(fHeaders, endHeaders, id, block(":status", "200")) + frame(fData, endStream, id, body))
}

// tell2 is a lie in answer to a POST: a GET would be sent again wherever the
// rule of replay allows it.
func tell2(name, rfc string, want outcome, script ...step) lie {
	if !strings.Contains(rfc, " ") {
		rfc = "9113 " + rfc
	}
	return tell(name, rfc, want, script...).posting()
}

// says2 is a lie that is one piece of bytes.
func says2(name, rfc string, want outcome, frames ...string) lie {
	return tell2(name, rfc, want, say(strings.Join(frames, "")))
}

func overH2C(c *config.Pool) { c.Protocol = config.PoolH2C }

func h2Lies() map[string][]lie {
	return map[string][]lie{
		"preface":      h2Prefaces(),
		"settings":     h2Settings(),
		"frames":       h2Frames(),
		"floods":       h2Floods(),
		"blocks":       h2Blocks(),
		"compression":  h2Compression(),
		"fields":       h2Fields(),
		"interim":      h2Interims(),
		"trailers":     h2Trailers(),
		"streams":      h2Streams(),
		"length":       h2Lengths(),
		"flow control": h2FlowControl(),
		"going away":   h2GoAways(),
		"reset":        h2Resets(),
		"truncation":   h2Truncation(),
	}
}

func TestLiesOfHTTP2(t *testing.T) {
	for family, table := range h2Lies() {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			tellAll(t, table, speakH2, overH2C)
		})
	}
}

func TestLiesOfHTTP2OverLoopback(t *testing.T) {
	for _, family := range []string{"truncation", "going away", "reset"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			tellOver(t, h2Lies()[family], speakH2, overH2C)
		})
	}
}

// breaks is an error of the connection.
func breaks(code string) outcome { return refuses("").stopped("GOAWAY " + code) }

// spoils is an error of the stream: the connection lives on.
func spoils(code string) outcome { return refuses("").onward().stopped("RST " + code) }

// malformed is a reply that is none (RFC 9113 8.1.1).
func malformed(reason string) outcome {
	return refuses(reason).onward().stopped("RST PROTOCOL_ERROR")
}

func h2Prefaces() []lie {
	silent := func(l lie) lie { return l.greeted(pause(0)).unacknowledged().windowless() }
	bad := breaks("PROTOCOL_ERROR")
	return []lie{
		says2("well-formed", "8.1", reply(200, "ok").declared(-1), okay()),
		silent(says2("PING first", "3.4", bad, frame(fPing, 0, 0, "12345678"))),
		silent(says2("PING, then SETTINGS and a reply", "3.4", bad, frame(fPing, 0, 0, "12345678"), greeting2, okay())),
		silent(says2("HEADERS first", "3.4", bad, okay())),
		silent(says2("WINDOW_UPDATE first", "3.4", bad, frame(fWindow, 0, 0, u32(1)))),
		silent(says2("acknowledgement first", "3.4", bad, frame(fSettings, ack, 0, ""))),
		silent(says2("an unknown frame first", "3.4", bad, frame(0x42, 0, 0, ""))),
		silent(says2("HTTP/1.1 400", "3.4", refuses("speaks HTTP/1.1"), h1("400 Bad Request", "Content-Length: 0"))),
		silent(says2("HTTP/1.1 200 with a body", "3.4", refuses("speaks HTTP/1.1"), sized("poison"))),
		silent(says2("an upgrade to h2c", "3.4", refuses("speaks HTTP/1.1"), h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: h2c"), greeting2, okay())),
		silent(says2("SSH", "3.4", refuses(""), "SSH-2.0-OpenSSH_9.2p1 Debian\r\n")),
		silent(says2("a TLS alert", "3.4", refuses(""), "\x15\x03\x01\x00\x02\x02\x46\x00\x00")),
		silent(says2("noise", "3.4", refuses(""), strings.Repeat("\xff", 1000))),
		silent(tell2("a few bytes of noise and FIN", "3.4", fails(lost, "").orElse(refuses("")), say("\xff\xff"), fin)),
		silent(tell2("silence", "3.4", fails(late, "no reply").maybe(), pause(2*lieFirstByte))).forlorn(),
		silent(tell2("FIN", "3.4", fails(lost, ""), fin)),
		silent(tell2("RST", "3.4", fails(lost, ""), rst)),
		says2("no acknowledgement", "6.5.3", reply(200, "ok"), okay()).unacknowledged(),
	}
}

func h2Settings() []lie {
	ok := reply(200, "ok")
	set := func(name, rfc string, want outcome, frames string) lie { return says2(name, rfc, want, frames, okay()) }
	bad := breaks("PROTOCOL_ERROR")
	return []lie{
		set("MAX_FRAME_SIZE 0", "6.5.2", bad, setting(sFrame, 0)),
		set("MAX_FRAME_SIZE 16383", "6.5.2", bad, setting(sFrame, 16383)),
		set("MAX_FRAME_SIZE 16384", "6.5.2", ok, setting(sFrame, 16384)),
		set("MAX_FRAME_SIZE 2^24-1", "6.5.2", ok, setting(sFrame, 1<<24-1)),
		set("MAX_FRAME_SIZE 2^24", "6.5.2", bad, setting(sFrame, 1<<24)),
		set("INITIAL_WINDOW_SIZE 2^31-1", "6.5.2", ok, setting(sWindow, 1<<31-1)),
		set("INITIAL_WINDOW_SIZE 2^31", "6.5.2", breaks("FLOW_CONTROL_ERROR"), setting(sWindow, 1<<31)),
		set("ENABLE_PUSH 0", "6.5.2", ok, setting(sPush, 0)),
		set("ENABLE_PUSH 1 from a server", "6.5.2", bad, setting(sPush, 1)),
		set("ENABLE_PUSH 2", "6.5.2", bad, setting(sPush, 2)),
		set("HEADER_TABLE_SIZE 0", "6.5.2", ok, setting(sTable, 0)),
		set("HEADER_TABLE_SIZE 2^32-1", "6.5.2", ok, setting(sTable, 1<<32-1)),
		set("MAX_HEADER_LIST_SIZE 2^32-1", "6.5.2", ok, setting(sList, 1<<32-1)),
		set("an unknown setting", "6.5.2", ok, setting(0x42, 7)),
		set("the same setting twice, the last counts", "6.5.3", bad, setting(sFrame, 20000, sFrame, 1)),
		set("a value that is bad for a moment", "6.5.2", bad, setting(sFrame, 1, sFrame, 20000)),
		set("a length of 5", "6.5", breaks("FRAME_SIZE_ERROR"), frame(fSettings, 0, 0, "12345")),
		set("on a stream", "6.5", bad, frame(fSettings, 0, 1, "")),
		set("an acknowledgement with a payload", "6.5", breaks("FRAME_SIZE_ERROR"), frame(fSettings, ack, 0, "123456")),
		set("an acknowledgement of nothing", "6.5.3", ok.maybe(), strings.Repeat(frame(fSettings, ack, 0, ""), 3)).
			expect(ok.maybe().orElse(refuses(""))),
		says2("MAX_CONCURRENT_STREAMS 1", "6.5.2", ok, okay()).greeted(say(setting(sStreams, 1))),
		says2("MAX_CONCURRENT_STREAMS 0 for a second", "6.5.2", ok, okay()).
			greeted(say(setting(sStreams, 0)), pause(time.Second), say(setting(sStreams, 1))),
		says2("MAX_CONCURRENT_STREAMS 0 while the request is under way", "6.5.2", ok.maybe(), setting(sStreams, 0), okay()),
		says2("INITIAL_WINDOW_SIZE 0 until later", "6.9.2", ok, okay()).
			greeted(say(setting(sWindow, 0)), pause(time.Second), say(setting(sWindow, 100))),
		tell2("INITIAL_WINDOW_SIZE 0 for ever", "6.9.2", fails(late, "no reply").maybe(), pause(3*lieFirstByte)).
			greeted(say(setting(sWindow, 0))).atOnce().forlorn(),
		says2("INITIAL_WINDOW_SIZE 1", "6.9.2", ok, okay()).greeted(say(setting(sWindow, 1))),
		says2("MAX_HEADER_LIST_SIZE 300", "6.5.2", ok, okay()).greeted(say(setting(sList, 300))),
		// It may be late for the first request.
		says2("MAX_HEADER_LIST_SIZE 0", "6.5.2", ok.orElse(outcome{fate: unsent}), okay()).greeted(say(setting(sList, 0))).forlorn(),
	}
}

func h2Frames() []lie {
	ok := reply(200, "ok")
	bad, size := breaks("PROTOCOL_ERROR"), breaks("FRAME_SIZE_ERROR")
	then := func(name, rfc string, want outcome, frames string) lie { return says2(name, rfc, want, frames, okay()) }
	return []lie{
		then("an unknown frame", "5.5", ok, frame(0x42, 0xff, 1, "whatever")),
		then("an unknown frame on stream 0", "5.5", ok, frame(0x42, 0xff, 0, "whatever")),
		then("an unknown frame on an idle stream", "5.5", ok, frame(0x42, 0, 99, "whatever")),
		then("unknown flags", "4.1", ok, frame(fPing, 0xfe, 0, "12345678")),
		then("a reserved bit", "4.1", ok, frame(fPing, 0, 1<<31, "12345678")),
		then("PRIORITY", "6.3", ok, frame(fPriority, 0, 1, u32(0)+"\x10")),
		then("PRIORITY of an idle stream", "6.3", ok, frame(fPriority, 0, 9, u32(0)+"\x10")),
		then("PRIORITY on stream 0", "6.3", bad, frame(fPriority, 0, 0, u32(0)+"\x10")),
		then("PRIORITY of 4 bytes", "6.3", refuses("").maybe(), frame(fPriority, 0, 1, u32(0))),
		then("PING", "6.7", ok, frame(fPing, 0, 0, "12345678")),
		then("an answer to no PING", "6.7", ok, frame(fPing, ack, 0, "12345678")),
		then("PING of 7 bytes", "6.7", size, frame(fPing, 0, 0, "1234567")),
		then("PING on a stream", "6.7", bad, frame(fPing, 0, 1, "12345678")),
		then("RST_STREAM of 3 bytes", "6.4", size, frame(fReset, 0, 1, "123")),
		then("RST_STREAM on stream 0", "6.4", bad, frame(fReset, 0, 0, u32(0))),
		then("RST_STREAM of an idle stream", "6.4", bad, frame(fReset, 0, 99, u32(8))),
		then("GOAWAY of 7 bytes", "6.8", size, frame(fGoAway, 0, 0, "1234567")),
		then("GOAWAY on a stream", "6.8", bad, frame(fGoAway, 0, 1, "12345678")),
		then("WINDOW_UPDATE of 3 bytes", "6.9", size, frame(fWindow, 0, 0, "123")),
		then("PUSH_PROMISE", "8.4", bad, frame(fPush, endHeaders, 1, u32(2)+block(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"))),
		then("PUSH_PROMISE of nothing", "6.6", refuses(""), frame(fPush, endHeaders, 1, "")),
		says2("a frame of 16385 bytes", "4.2", corrupts("", "frame too large"),
			head2(":status", "200"), data2(strings.Repeat("x", 16385)), lastData("ok")),
		then("a frame of 2^24-1 bytes", "4.2", size, "\xff\xff\xff\x42\x00\x00\x00\x00\x01"),
		says2("an empty DATA frame", "6.1", ok, head2(":status", "200"), data2(""), lastData("ok")),
	}
}

func h2Floods() []lie {
	flood := func(name string, want outcome, before, piece string) lie {
		return tell2(name, "10.5", want, say(before), endless(piece))
	}
	calm, blocks := refuses("too many frames that bring nothing"), refuses("too many CONTINUATION frames")
	head := head2(":status", "200")
	return []lie{
		flood("SETTINGS", calm, "", setting(sTable, 4096)),
		flood("empty SETTINGS", calm, "", greeting2),
		flood("PING", calm, "", frame(fPing, 0, 0, "12345678")),
		flood("answers to no PING", calm, "", frame(fPing, ack, 0, "12345678")),
		flood("acknowledgements", calm, "", frame(fSettings, ack, 0, "")),
		flood("PRIORITY", calm, "", frame(fPriority, 0, 9, u32(0)+"\x10")),
		flood("WINDOW_UPDATE", calm, "", frame(fWindow, 0, 0, u32(1))),
		flood("unknown frames", calm, "", frame(0x42, 0, 0, "")),
		flood("RST_STREAM", fails(lost, ""), "", reset(http2.ErrCodeCancel)),
		flood("GOAWAY", calm, "", goAway(1<<31-1, 0)),
		flood("interim replies", refuses("too many interim replies").after(103, 103, 103, 103, 103, 103, 103, 103), "", head2(":status", "103")),
		flood("empty DATA", corrupts("", "bring nothing"), head, data2("")),
		flood("DATA of padding only", corrupts("", "bring nothing"), head, frame(fData, padded, 1, "\xff"+strings.Repeat("\x00", 255))),
		flood("CONTINUATION", blocks, frame(fHeaders, 0, 1, block(":status", "200")), frame(fContinuation, 0, 1, block("x", "y"))),
		flood("empty CONTINUATION", blocks, frame(fHeaders, 0, 1, block(":status", "200")), frame(fContinuation, 0, 1, "")),
		flood("trailers", corrupts("", "second head"), head, frame(fHeaders, endHeaders, 1, block("x", "y"))),
		flood("PING to a server that does not read", calm, "", frame(fPing, 0, 0, "12345678")).unheard(),
		flood("SETTINGS of a server that does not read", calm, "", greeting2).unheard(),
	}
}

func h2Resets() []lie {
	again := outcome{fate: elsewhere, seen: 1}
	before := func(code http2.ErrCode, want outcome) lie {
		return says2(code.String()+" before a reply", "8.7", want, reset(code))
	}
	gone := fails(lost, "").onward()
	half := head2(":status", "200") + data2("hel")
	return []lie{
		before(http2.ErrCodeRefusedStream, again.onward()),
		before(http2.ErrCodeCancel, gone),
		before(http2.ErrCodeInternal, gone),
		before(http2.ErrCodeNo, gone),
		before(http2.ErrCodeProtocol, gone),
		before(http2.ErrCodeHTTP11Required, gone),
		before(http2.ErrCodeEnhanceYourCalm, gone.maybe()),
		before(http2.ErrCode(0x99), gone),
		tell("CANCEL before a reply to GET", "9110 9.2.2", again.onward(), say(reset(http2.ErrCodeCancel))),
		says2("REFUSED_STREAM behind an interim reply", "8.7", again.onward().after(103), head2(":status", "103"), reset(http2.ErrCodeRefusedStream)).
			expect(gone.after(103)),
		says2("REFUSED_STREAM by everybody", "8.7", gone, reset(http2.ErrCodeRefusedStream)).byAll(),
		says2("REFUSED_STREAM in a body", "8.7", cuts("hel").onward(), half, reset(http2.ErrCodeRefusedStream)),
		says2("CANCEL behind the head", "8.1", cuts("").onward(), head2(":status", "200"), reset(http2.ErrCodeCancel)),
		says2("CANCEL in a body", "8.1", cuts("hel").onward(), half, reset(http2.ErrCodeCancel)),
		says2("NO_ERROR in a body", "8.1", cuts("hel").onward(), half, reset(http2.ErrCodeNo)),
		says2("NO_ERROR in a body of the declared length", "8.1", cuts("hello").onward(),
			head2(":status", "200", "content-length", "5")+data2("hello"), reset(http2.ErrCodeNo)).expect(reply(200, "hello").orElse(cuts("hello").onward())),
		says2("NO_ERROR behind a whole reply", "8.1", reply(200, "ok"), okay(), reset(http2.ErrCodeNo)),
		says2("CANCEL behind a whole reply", "8.1", reply(200, "ok"), okay(), reset(http2.ErrCodeCancel)).expect(reply(200, "ok").orElse(cuts("ok").onward())),
		says2("two in a row", "5.1", gone, reset(http2.ErrCodeCancel), reset(http2.ErrCodeCancel)),
		tell2("413 and NO_ERROR in an upload", "8.1", reply(413, "large"), say(head2(":status", "413")+lastData("large")+reset(http2.ErrCodeNo))).uploading(),
		tell2("413 in an upload", "8.1", reply(413, "large"), say(head2(":status", "413")+lastData("large"))).uploading(),
		tell2("413 to a client that stalls", "8.1", reply(413, "large"), say(head2(":status", "413")+lastData("large"))).stalling(),
		tell2("CANCEL in an upload", "8.1", gone, pause(time.Millisecond), say(reset(http2.ErrCodeCancel))).uploading(),
		tell2("nothing, and no window", "6.9", fails(late, "").maybe(), pause(3*lieFirstByte)).uploading().windowless().forlorn(),
	}
}

func h2Truncation() []lie {
	var table []lie
	whole := head2(":status", "200") + data2("hello") + lastData("!")
	for _, c := range []struct {
		name string
		want outcome
		said string
	}{
		{"before a reply", fails(lost, ""), ""},
		{"in the head of a frame", fails(lost, ""), whole[:5]},
		{"in HEADERS", fails(lost, ""), whole[:12]},
		{"between HEADERS and CONTINUATION", fails(lost, ""), frame(fHeaders, 0, 1, block(":status", "200"))},
		{"behind an interim reply", fails(lost, "").after(103), head2(":status", "103")},
		{"behind the head", cuts(""), head2(":status", "200")},
		{"in the head of DATA", cuts(""), whole[:len(head2(":status", "200"))+4]},
		{"in DATA", cuts("hel"), whole[:len(head2(":status", "200"))+12]},
		{"between DATA", cuts("hello"), head2(":status", "200") + data2("hello")},
		{"behind DATA of the declared length", cuts("hello"), head2(":status", "200", "content-length", "5") + data2("hello")},
		{"in trailers", cuts("hello"), head2(":status", "200") + data2("hello") + final2("x", "y")[:12]},
	} {
		table = append(table,
			tell2(c.name+", FIN", "5.4", c.want, say(c.said), fin),
			tell2(c.name+", RST", "5.4", c.want, say(c.said), pause(time.Millisecond), rst),
			tell2(c.name+", FIN behind GOAWAY", "6.8", c.want, say(goAway(1, 0)+c.said), fin))
	}
	return append(table,
		tell2("behind a whole reply, FIN", "5.4", reply(200, "ok").once(), say(okay()), fin),
		tell2("behind a whole reply, RST", "5.4", reply(200, "ok").once(), say(okay()), pause(time.Millisecond), rst),
		tell("GET before a reply, FIN", "9110 9.2.2", outcome{fate: elsewhere, seen: 1}, fin),
		tell("GET before a reply, RST", "9110 9.2.2", outcome{fate: elsewhere, seen: 1}, rst),
	)
}

func h2GoAways() []lie {
	again := outcome{fate: elsewhere, seen: 1, reuse: closed}
	ok := reply(200, "ok").once()
	no, internal := http2.ErrCodeNo, http2.ErrCodeInternal
	return []lie{
		says2("the request was not taken", "6.8", again, goAway(0, no)),
		tell2("the request was not taken, and FIN", "6.8", again, say(goAway(0, no)), fin),
		tell2("an error, and the request was not taken", "6.8", again, say(goAway(0, internal)), fin),
		says2("the request was taken", "6.8", ok, goAway(1, no), okay()),
		says2("with an error, and a reply all the same", "6.8", ok, goAway(1, internal), okay()).expect(ok.orElse(fails(lost, ""))),
		tell2("the request was taken, and FIN", "6.8", fails(lost, ""), say(goAway(1, no)), fin),
		tell2("the request was taken, and RST", "6.8", fails(lost, ""), say(goAway(1, http2.ErrCodeEnhanceYourCalm)), pause(time.Millisecond), rst),
		says2("soon", "6.8", ok, goAway(1<<31-1, no), okay()),
		says2("soon, then now", "6.8", ok, goAway(1<<31-1, no), goAway(1, no), okay()),
		says2("soon, then not even this one", "6.8", again, goAway(1<<31-1, no), goAway(0, no)),
		says2("rising", "6.8", ok, goAway(1, no), goAway(3, no), okay()).expect(ok.orElse(refuses(""))),
		says2("risen from not taken to taken", "6.8", again, goAway(0, no), goAway(1, no), okay()),
		says2("in a body", "6.8", ok, head2(":status", "200"), goAway(1, no), lastData("ok")),
		says2("a lie in a body: not taken", "6.8", ok.orElse(cuts("")).orElse(corrupts("", "")), head2(":status", "200"), goAway(0, no), lastData("ok")),
		says2("behind a whole reply", "6.8", ok, okay(), goAway(1, no)),
		says2("with a long text", "6.8", ok, frame(fGoAway, 0, 0, u32(1)+u32(0)+strings.Repeat("x", 16000)), okay()),
		says2("of an even stream", "6.8", ok.orElse(refuses("")), goAway(2, no), okay()),
		says2("of a stream never opened", "6.8", ok, goAway(99, no), okay()),
		tell2("before the request", "6.8", outcome{fate: elsewhere, seen: 1}.orElse(outcome{fate: elsewhere}).orElse(reply(200, "ok").maybe()), say(okay())).
			greeted(say(greeting2+goAway(0, no)), fin),
		tell("by everybody", "6.8", fails(lost, ""), say(goAway(0, no)), fin).posting().byAll(),
	}
}
