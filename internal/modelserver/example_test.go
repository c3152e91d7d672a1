package modelserver_test

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"

	"edge/internal/modelserver"
)

// A client that confirms each token proves that the next one did not come
// before, and that none is held back on the way.
func ExampleServer_Confirm() {
	s, err := modelserver.Start(modelserver.Options{Script: modelserver.Script{Gate: true, Tokens: []string{"one", "two"}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = s.Close() }()
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post(
		s.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"stream":true}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		for _, token := range []string{"one", "two"} {
			if strings.Contains(lines.Text(), token) {
				fmt.Println(token)
				s.Confirm()
			}
		}
	}
	// Output:
	// one
	// two
}
