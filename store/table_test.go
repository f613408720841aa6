package store

import (
	"math"
	"path/filepath"
	"testing"
)

type thing struct {
	Name string   `json:"name"`
	Tags []string `json:"tags,omitempty"`
}

func testStore(t testing.TB) Store {
	t.Helper()
	s, err := OpenBolt(filepath.Join(t.TempDir(), "recast.db"), BoltOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestTableKeepsTypedValues(t *testing.T) {
	s := testStore(t)
	things := NewTable[thing](s, "/recast/things")
	c := ctx(t)
	_, _, err := things.Get(c, "a")
	expectErr(t, "get", ErrNotFound, err)

	r1, err := things.Put(c, "a", thing{Name: "<a> & b"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = things.Put(c, "a", thing{}, 0)
	expectErr(t, "create again", ErrConflict, err)
	op, err := things.PutOp("b/c", thing{Name: "b", Tags: []string{"x"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	r2 := commit(t, s, op, put("/recast/things-else/z", "not ours"))

	raw, err := s.Get(c, "/recast/things/a")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "on disk", `{"v":1,"o":{"name":"<a> & b"}}`, string(raw.Value))
	v, r, err := things.Get(c, "a")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "value", thing{Name: "<a> & b"}, v)
	expect(t, "revision", r1, r)
	rows, at, err := things.List(c)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "rows", []Row[thing]{{"a", thing{Name: "<a> & b"}, r1}, {"b/c", thing{Name: "b", Tags: []string{"x"}}, r2}}, rows)
	expect(t, "revision of the list", r2, at)

	expectErr(t, "delete of an older", ErrConflict, things.Delete(c, "a", r2))
	if err := things.Delete(c, "a", r1); err != nil {
		t.Fatal(err)
	}
	expect(t, "left", 1, len(keys(t, s, things.Prefix())))
}

func TestTableRefusesWhatItCannotRead(t *testing.T) {
	s := testStore(t)
	things := NewTable[thing](s, "/things/")
	for value, want := range map[string]string{
		`{"v":2,"o":{"shape":"unknown"}}`: ErrNewer.Error(),
		`{"v":1,"o":{"name":7}}`:          "cannot unmarshal",
		`{"o":{}}`:                        "no version",
		`{"v":1}`:                         "no object",
		`{"v":1,"o":{"name"`:              "unexpected end",
	} {
		commit(t, s, put("/things/x", value))
		_, _, err := things.Get(ctx(t), "x")
		oneLine(t, err, `"/things/x"`, want)
		_, _, err = things.List(ctx(t))
		oneLine(t, err, `"/things/x"`, want)
	}
	commit(t, s, put("/things/x", `{"v":1,"o":{"name":"a","later":1},"sum":""}`))
	v, _, err := things.Get(ctx(t), "x")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "an unknown field is ignored", thing{Name: "a"}, v)

	if _, err := NewTable[float64](s, "/f").PutOp("x", math.NaN(), Any); err == nil {
		t.Error("NaN was encoded")
	}
	if _, err := things.PutOp("", thing{}, Any); err == nil {
		t.Error("a row without a name was taken")
	}
}
