package dialect_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"testing"

	"edge/proxy/dialect"
)

func Example() {
	reply := dialect.Of("/v1/chat/completions", "application/json").Error(dialect.Error{
		Status: 503, Reason: "no_endpoint", Message: "no endpoint is available",
	})
	fmt.Println(reply.Status, reply.ContentType)
	fmt.Print(string(reply.Body))
	// Output:
	// 503 application/json
	// {"error":{"message":"no endpoint is available","type":"server_error","param":null,"code":"no_endpoint"}}
}

func TestFamilyIsChosenByPathAndContentType(t *testing.T) {
	for _, c := range []struct {
		path, contentType string
		want              dialect.Family
	}{
		{"/v1/chat/completions", "application/json", dialect.OpenAI},
		{"/v1", "", dialect.OpenAI},
		{"/v1beta", "", dialect.Problem},
		{"/v1/messages", "application/json", dialect.Anthropic},
		{"/v1/messages/count_tokens", "", dialect.Anthropic},
		{"/v1/messagesque", "", dialect.OpenAI},
		{"/api/chat", "", dialect.Ollama},
		{"/apiary", "", dialect.Problem},
		{"/", "text/html", dialect.Problem},
		{"", "", dialect.Problem},
		{"/inference.GRPCInferenceService/ModelInfer", "application/grpc", dialect.GRPC},
		{"/v1/x", "application/grpc+proto", dialect.GRPC},
		{"/v1/x", "Application/gRPC; charset=utf-8", dialect.GRPC},
		{"/v1/x", "application/grpc-web", dialect.OpenAI},
	} {
		if got := dialect.Of(c.path, c.contentType); got != c.want {
			t.Errorf("Of(%q, %q) = %v, want %v", c.path, c.contentType, got, c.want)
		}
	}
}

func TestErrorHasTheShapeThatClientsParse(t *testing.T) {
	e := dialect.Error{Status: 413, Reason: "body_too_large", Message: `too "large"`, RequestID: "id1"}
	for _, c := range []struct {
		family            dialect.Family
		contentType, want string
	}{
		{dialect.OpenAI, "application/json", `{"error":{"message":"too \"large\"","type":"invalid_request_error","param":null,"code":"body_too_large"}}`},
		{dialect.Anthropic, "application/json", `{"type":"error","error":{"type":"request_too_large","message":"too \"large\""},"request_id":"id1"}`},
		{dialect.Ollama, "application/json", `{"error":"too \"large\""}`},
		{dialect.Problem, "application/problem+json", `{"type":"about:blank","title":"Request Entity Too Large","status":413,"detail":"too \"large\"","reason":"body_too_large","request_id":"id1"}`},
	} {
		t.Run(c.family.String(), func(t *testing.T) {
			reply := c.family.Error(e)
			if reply.Status != 413 || reply.ContentType != c.contentType {
				t.Errorf("got %d %s, want 413 %s", reply.Status, reply.ContentType, c.contentType)
			}
			var got, want any
			if err := json.Unmarshal(reply.Body, &got); err != nil {
				t.Fatalf("body %s: %v", reply.Body, err)
			}
			if err := json.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %s, want %s", reply.Body, c.want)
			}
		})
	}
}

func TestGRPCErrorIsTrailersOnly(t *testing.T) {
	reply := dialect.GRPC.Error(dialect.Error{Status: 503, Reason: "no_endpoint", Message: "100% gone\nü"})
	want := [][2]string{{"grpc-status", "14"}, {"grpc-message", "no_endpoint: 100%25 gone%0A%C3%BC"}}
	if reply.Status != 200 || reply.ContentType != "application/grpc" || len(reply.Body) != 0 || !reflect.DeepEqual(reply.Fields, want) {
		t.Errorf("got %+v, want 200 with %v", reply, want)
	}
	if got := dialect.GRPC.Error(dialect.Error{Status: http.StatusMisdirectedRequest}).Status; got != http.StatusMisdirectedRequest {
		t.Errorf("misdirected: got %d, want 421 for the HTTP client below", got)
	}
}

func TestStatusKeepsItsMeaningInEveryFamily(t *testing.T) {
	for _, c := range []struct {
		status                  int
		openAI, anthropic, grpc string
	}{
		{400, "invalid_request_error", "invalid_request_error", "13"},
		{401, "invalid_request_error", "authentication_error", "16"},
		{403, "invalid_request_error", "permission_error", "7"},
		{404, "invalid_request_error", "not_found_error", "12"},
		{408, "invalid_request_error", "invalid_request_error", "4"},
		{413, "invalid_request_error", "request_too_large", "8"},
		{421, "invalid_request_error", "invalid_request_error", "14"},
		{429, "rate_limit_error", "rate_limit_error", "14"},
		{431, "invalid_request_error", "invalid_request_error", "8"},
		{500, "server_error", "api_error", "13"},
		{502, "server_error", "api_error", "14"},
		{503, "server_error", "overloaded_error", "14"},
		{504, "server_error", "timeout_error", "4"},
	} {
		e := dialect.Error{Status: c.status, Reason: "r", Message: "m"}
		var shape struct{ Error struct{ Type string } }
		for family, want := range map[dialect.Family]string{dialect.OpenAI: c.openAI, dialect.Anthropic: c.anthropic} {
			if err := json.Unmarshal(family.Error(e).Body, &shape); err != nil || shape.Error.Type != want {
				t.Errorf("%d in %v: got type %q, %v, want %q", c.status, family, shape.Error.Type, err, want)
			}
		}
		if got := dialect.GRPC.Error(e).Fields[0][1]; got != c.grpc {
			t.Errorf("%d in grpc: got %s, want %s", c.status, got, c.grpc)
		}
	}
}

func TestFamilyNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for f := dialect.Problem; f <= dialect.GRPC; f++ {
		if seen[f.String()] {
			t.Errorf("%v is used twice", f)
		}
		seen[f.String()] = true
	}
}
