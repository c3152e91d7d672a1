package upstream_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"edge/config"
	"edge/proxy/upstream"
)

// A request goes past a dead endpoint to the living one.
func ExamplePool_Do() {
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		prompt, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s at %s: %s", r.URL, r.Host, prompt)
	}))
	defer model.Close()

	registry := upstream.NewRegistry(upstream.Options{})
	defer registry.Close()
	set, err := registry.Prepare(map[string]*config.Pool{"gpu": {
		Endpoints: []config.Endpoint{{URL: "http://127.0.0.1:1"}, {URL: model.URL}},
		Retry:     config.Retry{Attempts: 2},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer set.Close()
	set.Commit()

	resp, err := set.Pool("gpu").Do(context.Background(), &upstream.Request{
		Method: "POST", Target: "/v1/completions", Host: "api.example.com",
		Length: 5, Body: strings.NewReader("hello"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Close()
	body, err := io.ReadAll(resp)
	fmt.Println(resp.Status, resp.Attempts, string(body), err)
	// Output: 200 2 /v1/completions at api.example.com: hello <nil>
}

// Status is what a control plane shows.
func ExampleRegistry_Status() {
	registry := upstream.NewRegistry(upstream.Options{})
	defer registry.Close()
	set, _ := registry.Prepare(map[string]*config.Pool{
		"gpu": {Endpoints: []config.Endpoint{{URL: "http://gpu-1:8000", Weight: 1}}},
	})
	defer set.Close()
	set.Commit()
	for _, pool := range registry.Status() {
		for _, e := range pool.Endpoints {
			fmt.Println(pool.Name, e.URL, e.Healthy, e.Inflight)
		}
	}
	// Output: gpu http://gpu-1:8000 true 0
}
