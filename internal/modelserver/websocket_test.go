package modelserver_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"edge/internal/modelserver"
)

// upgrade opens a websocket by hand, with early sent behind the request.
func upgrade(tb testing.TB, s *modelserver.Server, early []byte) (net.Conn, *bufio.Reader, *http.Response) {
	tb.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	head := "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, other\r\n\r\n"
	if _, err := conn.Write(append([]byte(head), early...)); err != nil {
		tb.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return conn, r, resp
}

func frame(tb testing.TB, r io.Reader) modelserver.Frame {
	tb.Helper()
	f, masked, err := modelserver.ReadFrame(r)
	if err != nil || masked {
		tb.Fatalf("frame %+v, masked %v, %v", f, masked, err)
	}
	return f
}

func TestWebsocketEchoesFramesOfEverySize(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Script: modelserver.Script{Greeting: "hi"}})
	early := modelserver.Frame{Fin: true, Op: modelserver.OpText, Payload: []byte("early")}
	conn, r, resp := upgrade(t, s, early.Bytes(true))
	// The key and the answer are those of RFC 6455, section 1.3.
	if got := resp.Header.Get("Sec-WebSocket-Accept"); resp.StatusCode != http.StatusSwitchingProtocols || got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%s, accept %q", resp.Status, got)
	}
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != "chat" {
		t.Errorf("protocol %q", got)
	}
	for _, want := range []string{"hi", "early"} {
		if f := frame(t, r); string(f.Payload) != want || !f.Fin || f.Op != modelserver.OpText {
			t.Fatalf("got %+v, want %q", f, want)
		}
	}
	for _, size := range []int{0, 125, 126, 65535, 65536} {
		f := modelserver.Frame{Op: modelserver.OpBinary, Payload: bytes.Repeat([]byte{7}, size)}
		if _, err := conn.Write(f.Bytes(true)); err != nil {
			t.Fatal(err)
		}
		if got := frame(t, r); got.Fin || got.Op != f.Op || !bytes.Equal(got.Payload, f.Payload) {
			t.Errorf("%d bytes came back as %d, %+v", size, len(got.Payload), got.Op)
		}
	}
	for _, op := range []byte{modelserver.OpPong, modelserver.OpPing} { // a pong gets no answer
		if _, err := conn.Write(modelserver.Frame{Fin: true, Op: op}.Bytes(true)); err != nil {
			t.Fatal(err)
		}
	}
	if f := frame(t, r); f.Op != modelserver.OpPong {
		t.Errorf("a ping was answered with %+v", f)
	}
	if _, err := conn.Write(modelserver.Frame{Fin: true, Op: modelserver.OpClose}.Bytes(true)); err != nil {
		t.Fatal(err)
	}
	if f := frame(t, r); f.Op != modelserver.OpClose {
		t.Errorf("a close was answered with %+v", f)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("got %v after the close, want EOF", err)
	}
}

func TestWebsocketEndsWithTheServerOrItsClient(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{})
	conn, _, _ := upgrade(t, s, nil)
	conn.Close()
	if a := <-s.Aborted(); a.Target != "/ws" {
		t.Errorf("abort %+v", a)
	}
	conn, r, _ := upgrade(t, s, nil)
	if _, err := conn.Write(modelserver.Frame{Fin: true, Op: modelserver.OpText}.Bytes(false)); err != nil {
		t.Fatal(err)
	}
	if f := frame(t, r); f.Op != modelserver.OpClose || !bytes.Equal(f.Payload, []byte{0x03, 0xEA}) {
		t.Errorf("an unmasked frame was answered with %+v", f)
	}
	_, r, _ = upgrade(t, s, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("the websocket outlived its server")
	}
}

func TestWebsocketNeedsAProperHandshake(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{})
	if resp, _ := do(t, client(t), http.MethodGet, s.URL+"/ws", ""); resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("got %s", resp.Status)
	}
	s.SetScript(modelserver.Script{Status: http.StatusForbidden})
	if _, _, resp := upgrade(t, s, nil); resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %s", resp.Status)
	}
}

func TestMalformedFramesAreRefused(t *testing.T) {
	t.Parallel()
	for name, wire := range map[string]string{
		"reserved bit":   "\xF1\x00",
		"too large":      "\x82\x7F\x00\x00\x00\x00\xFF\xFF\xFF\xFF",
		"no long length": "\x82\x7E\x00",
		"no mask":        "\x82\x81\x00",
		"no payload":     "\x82\x02a",
		"nothing":        "",
	} {
		if f, _, err := modelserver.ReadFrame(strings.NewReader(wire)); err == nil {
			t.Errorf("%s: got %+v", name, f)
		}
	}
}
