package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/scopes"
)

// LoadMappings reads the mappings that the configuration names, as the function of
// this name. Where their folder is no folder of mappings, the mistake stands at the
// key that names it.
func (c *Config) LoadMappings() ([]*scopes.Mapping, error) {
	out, err := LoadMappings(c.Mappings)
	var all strictyaml.Errors
	if errors.As(err, &all) && len(all) == 1 && all[0].File == filepath.Clean(c.Mappings) {
		return nil, c.Errorf("mappings: %s: %s", c.Mappings, all[0].Text)
	}
	if err != nil {
		return nil, err
	}
	if out, err = c.withAdmin(out); err != nil {
		return nil, err
	}
	return c.withConnect(out)
}

// LoadMappings reads all mappings of a folder: NAME.yaml, and NAME.cedar beside
// it. Names that begin with a dot are left out, as editors and mounted volumes
// have them. The error is a [strictyaml.Errors] with everything that is wrong in
// any of them. What the mappings refer to is for [scopes.Compile] to check.
func LoadMappings(dir string) ([]*scopes.Mapping, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, strictyaml.Errors{{File: filepath.Clean(dir), Text: "the folder of the mappings: " + cause(err)}}
	}
	var out []*scopes.Mapping
	var mistakes strictyaml.Errors
	failf := func(file, format string, args ...any) {
		mistakes = append(mistakes, strictyaml.Error{File: filepath.Join(dir, file), Text: fmt.Sprintf(format, args...)})
	}
	cedar := make(map[string]bool)
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		switch name := strings.TrimSuffix(e.Name(), ext); {
		case strings.HasPrefix(name, ".") || name == "":
		case ext == ".yaml":
			names = append(names, name)
		case ext == ".cedar":
			cedar[name] = true
		case ext == ".yml":
			failf(e.Name(), "a mapping is called NAME.yaml: this file would do nothing")
		}
	}
	for i, l := range loadAll(dir, names, cedar) {
		delete(cedar, names[i])
		var some strictyaml.Errors
		switch {
		case errors.As(l.err, &some):
			mistakes = append(mistakes, some...)
		case l.err != nil:
			return nil, l.err
		default:
			out = append(out, l.mapping)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cedar)) {
		failf(name+".cedar", "there is no mapping %s.yaml beside it, so that it would do nothing", name)
	}
	if len(out) == 0 && len(mistakes) == 0 {
		failf("", "there is no NAME.yaml here, so that nothing could be granted")
	}
	if len(mistakes) > 0 {
		return nil, mistakes
	}
	return out, nil
}

// loaded is what came of reading a mapping.
type loaded struct {
	mapping *scopes.Mapping
	err     error
}

// loadAll reads mappings, as many at a time as there are processors, and returns
// them in the order of their names.
func loadAll(dir string, names []string, cedar map[string]bool) []loaded {
	out := make([]loaded, len(names))
	var next atomic.Int64
	var wait sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(names)) {
		wait.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(names)); i = next.Add(1) - 1 {
				out[i].mapping, out[i].err = loadMapping(dir, names[i], cedar[names[i]])
			}
		})
	}
	wait.Wait()
	return out
}

// loadMapping reads one mapping. The error is a [strictyaml.Errors].
func loadMapping(dir, name string, withCedar bool) (*scopes.Mapping, error) {
	path := filepath.Join(dir, name+".yaml")
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	m, err := parseMapping(path, data)
	if err != nil || !withCedar {
		return m, err
	}
	m.CedarFile = filepath.Join(dir, name+".cedar")
	if m.Cedar, err = readFile(m.CedarFile); err != nil {
		return nil, err
	}
	m.Content = append(m.Content, m.Cedar)
	return m, nil
}

func parseMapping(path string, data []byte) (*scopes.Mapping, error) {
	m := &scopes.Mapping{}
	m.Pos.SetPos(path, 1, 1)
	if err := strictyaml.Decode(path, data, m); err != nil {
		return nil, err
	}
	m.Content = [][]byte{data}
	return m, nil
}
