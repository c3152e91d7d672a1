package config_test

import (
	"fmt"
	"os"
	"path/filepath"

	"edge/config"
)

const small = `
version: 1
acme: {email: ops@example.com, dns: route53}
routes:
  - {host: llm.example.com, endpoints: ["http://10.0.0.11:8000", "http://10.0.0.12:8000"]}
`

func ExampleLoad() {
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "routes.yaml")
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		fmt.Println(err)
		return
	}

	cfg, err := config.Load(path)
	if err != nil {
		fmt.Println(err) // every problem, one a line
		return
	}
	for _, route := range cfg.Routes {
		for _, e := range cfg.Pools[route.Pool].Endpoints {
			fmt.Println(route.Hosts, e.URL)
		}
	}
	fmt.Println(cfg.Listeners["https"].Address, cfg.Storage.URL, cfg.Drain.Timeout)
	// Output:
	// [llm.example.com] http://10.0.0.11:8000
	// [llm.example.com] http://10.0.0.12:8000
	// :443 file:///var/lib/edge 1m0s
}

func ExampleParse() {
	_, err := config.Parse("routes.yaml", []byte(`version: 1
acme: {email: ops@example.com, dns: route53}
pools:
  gpus: {endpoints: ["http://10.0.0.11:8000"]}
routes:
  - {host: llm.example.com, pool: gpu, timeout: 5m}
`))
	fmt.Println(err)
	// Output:
	// routes.yaml:6:35: routes[0].pool: no pool "gpu" (pools: gpus)
	// routes.yaml:6:40: routes[0].timeout: unknown key "timeout" (did you mean "timeouts"?)
}

func ExampleSecret_Load() {
	_ = os.Setenv("EXAMPLE_TOKEN", "s3cr3t")
	token := config.Secret{Ref: "env:EXAMPLE_TOKEN"}
	value, err := token.Load()
	fmt.Println(token, len(value), err)
	// Output: env:EXAMPLE_TOKEN 6 <nil>
}
