package knative

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/robofleet/robofleet/eventing/controller"
	"github.com/robofleet/robofleet/eventing/ingress"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/functions/validate"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/sink"
)

// configs are the types that mains compose their configuration of, by the name that they have there.
var configs = map[string]reflect.Type{
	"batch.Config":            reflect.TypeFor[batch.Config](),
	"controller.Settings":     reflect.TypeFor[controller.Settings](),
	"function.Config":         reflect.TypeFor[function.Config](),
	"function.Server":         reflect.TypeFor[function.Server](),
	"hotwrite.BigQueryConfig": reflect.TypeFor[hotwrite.BigQueryConfig](),
	"ingress.Limits":          reflect.TypeFor[ingress.Limits](),
	"ingress.Publishing":      reflect.TypeFor[ingress.Publishing](),
	"sink.Config":             reflect.TypeFor[sink.Config](),
	"validate.Config":         reflect.TypeFor[validate.Config](),
}

// variables returns the environment variables that the command of that package reads, and whether it requires them. It
// reads them from the one struct type in the command's source, because a package main cannot be imported.
func variables(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	dir := filepath.Join("..", filepath.FromSlash(pkg))
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var found []*ast.StructType
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(source, func(n ast.Node) bool {
			if s, ok := n.(*ast.StructType); ok && s.Fields.NumFields() > 0 {
				found = append(found, s)
			}
			return true
		})
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d struct types, want one: its configuration", dir, len(found))
	}
	reads := make(map[string]bool)
	for _, f := range found[0].Fields.List {
		var tag reflect.StructTag
		if f.Tag != nil {
			text, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				t.Fatal(err)
			}
			tag = reflect.StructTag(text)
		}
		name, required, prefix := envTag(tag)
		if name != "" {
			reads[name] = required
			continue
		}
		selector, ok := f.Type.(*ast.SelectorExpr)
		if !ok {
			t.Fatalf("%s: a field without a variable", dir)
		}
		composed := selector.X.(*ast.Ident).Name + "." + selector.Sel.Name
		if configs[composed] == nil {
			t.Fatalf("%s: the test does not know %s", dir, composed)
		}
		fields(configs[composed], prefix, reads)
	}
	return reads
}

// fields adds the variables of a struct type.
func fields(s reflect.Type, prefix string, reads map[string]bool) {
	for i := range s.NumField() {
		f := s.Field(i)
		name, required, inner := envTag(f.Tag)
		switch {
		case name != "":
			reads[prefix+name] = required
		case f.Type.Kind() == reflect.Struct:
			fields(f.Type, prefix+inner, reads)
		}
	}
}

// envTag reads the tag that envconfig reads.
func envTag(tag reflect.StructTag) (name string, required bool, prefix string) {
	for i, part := range strings.Split(tag.Get("env"), ",") {
		part = strings.TrimSpace(part)
		switch {
		case i == 0:
			name = part
		case part == "required":
			required = true
		case strings.HasPrefix(part, "prefix="):
			prefix = strings.TrimPrefix(part, "prefix=")
		}
	}
	return name, required, prefix
}
