package http1_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"edge/proxy/exchange"
	"edge/proxy/http1"
)

func ExampleClient() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		prompt, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s: you said %q\n", r.Host, prompt)
	}))
	defer server.Close()

	client := http1.NewClient(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}, http1.Options{})
	defer client.Close()

	reply, err := client.Do(&exchange.Call{
		Method: "POST", Target: "/v1/completions", Host: "model.example",
		Header:    exchange.Fields{{Name: "Content-Type", Value: "text/plain"}},
		Length:    5,
		Body:      strings.NewReader("hello"),
		FirstByte: time.Minute,
		Canceler:  new(exchange.Canceler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer reply.Body.Close()
	fmt.Println(reply.Status, reply.Header.Get("content-type"))
	_, _ = io.Copy(os.Stdout, reply.Body)
	fmt.Println(client.Idle(), "idle connection")
	// Output:
	// 200 text/plain; charset=utf-8
	// model.example: you said "hello"
	// 1 idle connection
}
