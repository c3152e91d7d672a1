package http2_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"

	"edge/proxy/exchange"
	"edge/proxy/http2"
)

func ExampleClient() {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s", r.Proto, r.URL)
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()

	client := http2.NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", server.Listener.Addr().String())
	}, http2.Options{})
	defer client.Close()
	reply, err := client.Do(&exchange.Call{
		Method: "GET", Target: "/v1/models", Scheme: "http", Host: "models.test",
		Canceler: new(exchange.Canceler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = reply.Body.Close() }()
	body, err := io.ReadAll(reply.Body)
	fmt.Println(reply.Status, string(body), err)
	// Output: 200 HTTP/2.0 /v1/models <nil>
}
