// Package edge_test holds the rules of the house as tests: layers, walls,
// budgets and the contract of a layer. It reads source, it runs none.
package edge_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "edge/"

// layers lists the packages of this module, lowest first. A package imports
// only packages of lower layers.
var layers = [][]string{
	{"hostname"},
	{"config", "proxy/exchange"},
	{"proxy/dialect", "proxy/http1", "proxy/http2"},
	{"proxy/upstream", "tlsmgr/store", "tlsmgr/dns", "tlsmgr/acme", "tlsmgr/ca"},
	{"tlsmgr/vault"},
	{"proxy", "tlsmgr", "tlsmgr/transfer"},
	{"admin"},
	{"cmd/edge"},
}

// kit lists the packages that only tests and programs in lab may import.
var kit = []string{"internal/acmelab", "internal/modelserver", "internal/edgetest", "internal/memnet", "proxy/exchange/exchangetest", "tlsmgr/store/storetest", "lab/bench/internal/meter", "lab/bench/internal/h1", "lab/bench/internal/model"}

// programs lists what is built on top and imported by nobody.
var programs = []string{"cmd/edge", "lab/demo", "lab/demo/stage", "lab/bench", "lab/bench/loadgen", "lab/bench/modelsim", "lab/bench/std"}

// walls keeps a dependency behind the packages that hide it.
var walls = map[string][]string{
	"go.yaml.in/yaml":                                       {"config"},
	"github.com/mholt/acmez":                                {"tlsmgr/acme"},
	"go.uber.org/zap":                                       {"tlsmgr/acme"},
	"github.com/caddyserver/certmagic":                      {"tlsmgr", "tlsmgr/store", "tlsmgr/dns", "tlsmgr/transfer"},
	"github.com/libdns":                                     {"tlsmgr/dns"},
	"github.com/miekg/dns":                                  {"tlsmgr/dns"},
	"github.com/aws/aws-sdk-go-v2":                          {"tlsmgr/store", "tlsmgr/dns"},
	"github.com/aws/smithy-go":                              {"tlsmgr/store"},
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob":  {"tlsmgr/store"},
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity":      {"tlsmgr/store", "tlsmgr/dns"},
	"github.com/Azure/azure-sdk-for-go/sdk/azcore":          {"tlsmgr/store", "tlsmgr/dns"},
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager": {"tlsmgr/dns"},
	"golang.org/x/oauth2":                                   {"tlsmgr/store", "tlsmgr/dns"},
	"golang.org/x/time":                                     {"tlsmgr/dns"},
	"golang.org/x/net/http2":                                {"proxy", "proxy/http2"},
	"golang.org/x/net/publicsuffix":                         {"hostname"},
	"golang.org/x/net/idna":                                 {"hostname"},
	"github.com/fsnotify/fsnotify":                          {"tlsmgr"},
	"github.com/prometheus":                                 {"admin"},
	"github.com/spf13/cobra":                                {"cmd/edge"},
	"github.com/coreos/go-systemd":                          {"cmd/edge"},
	"github.com/letsencrypt/pebble":                         {},
	"github.com/johannesboyne/gofakes3":                     {},
	"github.com/rogpeppe/go-internal":                       {},
	"pgregory.net/rapid":                                    {},
}

// Budgets of STYLE: the tail is policed, not the median.
const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxFanOut        = 5 // internal imports of one package; hostname, config and exchange are not counted
)

// bannedNames are package names that say nothing.
var bannedNames = []string{"util", "utils", "common", "helpers", "types", "core", "misc", "shared"}

// source is one parsed file of the module.
type source struct {
	path, pkg string
	test      bool
	lines     int
	fset      *token.FileSet
	ast       *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != "." && isModule(file):
			return filepath.SkipDir
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "tools" || d.Name() == "node_modules" || len(file) > 1 && file[0] == '.'):
			return filepath.SkipDir
		case !strings.HasSuffix(file, ".go"):
			return nil
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file, text, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{
			path: file, pkg: filepath.ToSlash(filepath.Dir(file)), test: strings.HasSuffix(file, "_test.go"),
			lines: bytes.Count(text, []byte("\n")), fset: fset, ast: f,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// isModule reports whether dir is a module of its own, with its own rules.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func ranks() map[string]int {
	rank := map[string]int{}
	for i, layer := range layers {
		for _, pkg := range layer {
			rank[pkg] = i
		}
	}
	return rank
}

func TestPackagesImportOnlyDownward(t *testing.T) {
	rank := ranks()
	fanOut := map[string]map[string]bool{}
	for _, s := range sources(t) {
		if s.test || s.pkg == "." {
			continue
		}
		r, layered := rank[s.pkg]
		isKit, isProgram := slices.Contains(kit, s.pkg), slices.Contains(programs, s.pkg)
		if !layered && !isKit && !isProgram {
			t.Errorf("%s: package %s is in no layer", s.path, s.pkg)
		}
		for _, imp := range imports(s) {
			dep, ours := strings.CutPrefix(imp, module)
			switch {
			case !ours:
			case slices.Contains(kit, dep) && !isKit && !strings.HasPrefix(s.pkg, "lab/"):
				t.Errorf("%s: imports %s, which only tests and lab may", s.path, dep)
			case slices.Contains(programs, dep):
				t.Errorf("%s: imports the program %s", s.path, dep)
			case layered && rank[dep] >= r:
				t.Errorf("%s: imports %s, which is not in a lower layer", s.path, dep)
			case layered && rank[dep] >= rank["proxy/dialect"]:
				if fanOut[s.pkg] == nil {
					fanOut[s.pkg] = map[string]bool{}
				}
				fanOut[s.pkg][dep] = true
			}
		}
	}
	for pkg, deps := range fanOut {
		if len(deps) > maxFanOut && pkg != "cmd/edge" {
			t.Errorf("package %s imports %d packages of ours, want at most %d", pkg, len(deps), maxFanOut)
		}
	}
}

func TestDependenciesStayBehindTheirWalls(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || slices.Contains(kit, s.pkg) || strings.HasPrefix(s.pkg, "lab/") {
			continue
		}
		for _, imp := range imports(s) {
			for wall, owners := range walls {
				if (imp == wall || strings.HasPrefix(imp, wall+"/")) && !slices.Contains(owners, s.pkg) {
					t.Errorf("%s: imports %s, which belongs to %q", s.path, imp, owners)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if !s.test {
			documented[s.pkg] = documented[s.pkg] || s.ast.Doc != nil
		}
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
		if slices.Contains(bannedNames, filepath.Base(pkg)) {
			t.Errorf("package %s has a name that says nothing", pkg)
		}
	}
}

// A file or function over budget is a missing idea; an exception is a comment
// "over budget: reason" on the function. The test kit counts as tests, but keeps
// to the same budgets.
func TestBudgets(t *testing.T) {
	code, tests := 0, 0
	for _, s := range sources(t) {
		if s.test {
			tests += s.lines
			continue
		}
		if slices.Contains(kit, s.pkg) {
			tests += s.lines
		} else {
			code += s.lines
		}
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines, want at most %d", s.path, s.lines, maxFileLines)
		}
		for _, decl := range s.ast.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: has an init function", s.fset.Position(f.Pos()))
			}
			n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if n > maxFunctionLines && !strings.Contains(f.Doc.Text(), "over budget:") {
				t.Errorf("%s: %s has %d lines, want at most %d", s.fset.Position(f.Pos()), f.Name.Name, n, maxFunctionLines)
			}
		}
	}
	t.Logf("%d lines of code, %d of tests", code, tests)
	if tests < code {
		t.Errorf("%d lines of tests for %d lines of code, want at least as many", tests, code)
	}
}

// A package variable is a table or a sentinel: nothing assigns to it.
func TestNothingAssignsToPackageVariables(t *testing.T) {
	vars := map[string]map[string]bool{} // by package
	all := sources(t)
	for _, s := range all {
		for _, decl := range s.ast.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR || s.test {
				continue
			}
			for _, spec := range g.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if vars[s.pkg] == nil {
						vars[s.pkg] = map[string]bool{}
					}
					vars[s.pkg][name.Name] = true
				}
			}
		}
	}
	for _, s := range all {
		unresolved := map[*ast.Ident]bool{} // names of other files of the package
		for _, id := range s.ast.Unresolved {
			unresolved[id] = true
		}
		report := func(x ast.Expr) {
			id, ok := x.(*ast.Ident)
			if !ok || !vars[s.pkg][id.Name] {
				return
			}
			if unresolved[id] || s.ast.Scope.Lookup(id.Name) != nil && id.Obj == s.ast.Scope.Lookup(id.Name) {
				t.Errorf("%s: assigns to the package variable %s", s.fset.Position(id.Pos()), id.Name)
			}
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, x := range n.Lhs {
					report(x)
				}
			case *ast.IncDecStmt:
				report(n.X)
			}
			return true
		})
	}
}

// The contract of a layer: no work after next returns, because a detached
// reply goes on without the goroutine; what must happen at the end is
// registered with OnEnd. Only rescue may defer, to catch a panic.
func TestLayersDoNoWorkAfterNext(t *testing.T) {
	found := 0
	for _, s := range sources(t) {
		if s.test || s.pkg != "proxy" {
			continue
		}
		for _, decl := range s.ast.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || !returnsLayer(f) || f.Name.Name == "rescue" {
				continue
			}
			found++
			ast.Inspect(f, func(n ast.Node) bool {
				lit, ok := n.(*ast.FuncLit)
				if ok && takesExchange(lit) {
					checkTail(t, s, lit.Body, true)
				}
				return true
			})
		}
	}
	if found == 0 {
		t.Error("found no layer in package proxy: has the stack moved?")
	}
}

func returnsLayer(f *ast.FuncDecl) bool {
	if f.Type.Results == nil || len(f.Type.Results.List) != 1 {
		return false
	}
	sel, ok := f.Type.Results.List[0].Type.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "Layer"
}

func takesExchange(lit *ast.FuncLit) bool {
	if len(lit.Type.Params.List) != 1 {
		return false
	}
	star, ok := lit.Type.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	sel, ok := star.X.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "Exchange"
}

// checkTail reports a defer, and a call of next that is not the last thing
// done. tail says whether the end of block is the end of the handler.
func checkTail(t *testing.T, s source, block *ast.BlockStmt, tail bool) {
	t.Helper()
	for i, stmt := range block.List {
		last := tail && i == len(block.List)-1
		if i+1 < len(block.List) {
			if r, ok := block.List[i+1].(*ast.ReturnStmt); ok && len(r.Results) == 0 {
				last = true
			}
		}
		switch stmt := stmt.(type) {
		case *ast.DeferStmt:
			t.Errorf("%s: a layer defers; register with OnEnd", s.fset.Position(stmt.Pos()))
		case *ast.ExprStmt:
			if isNext(stmt.X) && !last {
				t.Errorf("%s: a layer works after next; register with OnEnd", s.fset.Position(stmt.Pos()))
			}
		case *ast.BlockStmt:
			checkTail(t, s, stmt, last)
		case *ast.IfStmt:
			checkTail(t, s, stmt.Body, last)
			if e, ok := stmt.Else.(*ast.BlockStmt); ok {
				checkTail(t, s, e, last)
			}
		case *ast.SwitchStmt:
			for _, c := range stmt.Body.List {
				checkTail(t, s, &ast.BlockStmt{List: c.(*ast.CaseClause).Body}, last)
			}
		case *ast.ForStmt:
			checkTail(t, s, stmt.Body, false)
		case *ast.RangeStmt:
			checkTail(t, s, stmt.Body, false)
		}
	}
}

func isNext(x ast.Expr) bool {
	call, ok := x.(*ast.CallExpr)
	if !ok {
		return false
	}
	id, ok := call.Fun.(*ast.Ident)
	return ok && id.Name == "next"
}

// Every direct dependency has a line in docs/decisions/dependencies.md: what it
// saves, what it drags in, how we would leave it.
func TestEveryDirectDependencyIsADecision(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/decisions/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := 0
	for line := range strings.Lines(string(mod)) {
		module, version, ok := strings.Cut(strings.TrimSpace(line), " v")
		if !ok || strings.Contains(version, "// indirect") {
			continue
		}
		direct++
		name := strings.TrimPrefix(module, "github.com/") // or a folder that it is in
		for name != "." && !strings.Contains(string(doc), "`"+name+"`") {
			name = path.Dir(name)
		}
		if name == "." {
			t.Errorf("%s has no line in docs/decisions/dependencies.md", module)
		}
	}
	if direct == 0 {
		t.Error("found no dependency in go.mod")
	}
}

func imports(s source) []string {
	var out []string
	for _, spec := range s.ast.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		out = append(out, imp)
	}
	return out
}
