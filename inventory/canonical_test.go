package inventory

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
)

// The examples of RFC 8785 §3.2.2 and §3.2.3, and what its text asks for.
func TestCanonicalIsRFC8785(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"§3.2.2", `{
			"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
			"string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
			"literals": [null, true, false]
		}`, `{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`},
		{"§3.2.3", `{
			"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
			"\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"
		}`, "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\"," +
			"\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}"},
		{"nested and empty", ` [ { } , [ ] , { "b" : { "d" : [ 1 ] , "c" : 2 } , "a" : "" } ] `, `[{},[],{"a":"","b":{"c":2,"d":[1]}}]`},
		{"no needless escapes", `"<&>\u2028\u007f\b\f\t\u001f"`, "\"<&>\u2028\u007f\\b\\f\\t\\u001f\""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Canonical(json.RawMessage(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			again, err := Canonical(json.RawMessage(got))
			if err != nil || string(again) != tt.want {
				t.Errorf("canonical form of the canonical form is %s (%v)", again, err)
			}
		})
	}
}

// RFC 8785 appendix B: the double by its bits, and how it is written.
func TestCanonicalNumbersOfRFC8785(t *testing.T) {
	for bits, want := range map[string]string{
		"0000000000000000": "0", "8000000000000000": "0",
		"0000000000000001": "5e-324", "8000000000000001": "-5e-324",
		"7fefffffffffffff": "1.7976931348623157e+308", "ffefffffffffffff": "-1.7976931348623157e+308",
		"4340000000000000": "9007199254740992", "c340000000000000": "-9007199254740992",
		"4430000000000000": "295147905179352830000",
		"7fffffffffffffff": "", "7ff0000000000000": "",
		"44b52d02c7e14af5": "9.999999999999997e+22", "44b52d02c7e14af6": "1e+23", "44b52d02c7e14af7": "1.0000000000000001e+23",
		"444b1ae4d6e2ef4e": "999999999999999700000", "444b1ae4d6e2ef4f": "999999999999999900000", "444b1ae4d6e2ef50": "1e+21",
		"3eb0c6f7a0b5ed8c": "9.999999999999997e-7", "3eb0c6f7a0b5ed8d": "0.000001",
		"41b3de4355555553": "333333333.3333332", "41b3de4355555554": "333333333.33333325", "41b3de4355555555": "333333333.3333333",
		"41b3de4355555556": "333333333.3333334", "41b3de4355555557": "333333333.33333343",
		"becbf647612f3696": "-0.0000033333333333333333", "43143ff3c1cb0959": "1424953923781206.2",
	} {
		n, err := strconv.ParseUint(bits, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Canonical(math.Float64frombits(n))
		if want == "" {
			if err == nil {
				t.Errorf("%s became %s", bits, got)
			}
			continue
		}
		if err != nil || string(got) != want {
			t.Errorf("%s became %s (%v), want %s", bits, got, err, want)
		}
	}
}

func TestCanonicalRefusesWhatHasNoSingleSpelling(t *testing.T) {
	for name, in := range map[string]struct {
		v    any
		want string
	}{
		"lone surrogate":          {json.RawMessage(`"\ud83d"`), "invalid surrogate pair"},
		"surrogates swapped":      {json.RawMessage(`"\ude00\ud83d"`), "invalid surrogate pair"},
		"bytes that are not text": {"a\xffb", "invalid UTF-8"},
		"raw bytes":               {json.RawMessage("\"a\xffb\""), ""},
		"name twice":              {json.RawMessage(`{"a":1,"\u0061":2}`), `duplicate object member name "a"`},
		"whole number":            {json.RawMessage(`9007199254740993`), "too precise"},
		"Go's whole number":       {int64(math.MaxInt64), "too precise"},
		"huge number":             {json.RawMessage(`1e400`), "too large"},
		"leading zero":            {json.RawMessage(`01`), "after top-level value"},
		"text behind":             {json.RawMessage(`1 2`), "after top-level value"},
		"control character":       {json.RawMessage("\"a\x01\""), "expecting non-control character"},
		"open string":             {json.RawMessage(`"a`), "unexpected EOF"},
		"open object":             {json.RawMessage(`{"a":1`), "unexpected EOF"},
		"trailing comma":          {json.RawMessage(`[1,]`), "at start of value"},
		"nothing":                 {json.RawMessage(``), "unexpected EOF"},
		"deep":                    {json.RawMessage(strings.Repeat("[", 20000)), "exceeded max depth"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Canonical(in.v)
			if err == nil || !strings.Contains(err.Error(), in.want) {
				t.Errorf("got %s, error %v, want one with %q", got, err, in.want)
			}
		})
	}
	// A whole number within a double's precision passes, and so does U+FFFD itself.
	for _, v := range []any{int64(1<<53 - 1), "\uFFFD", json.RawMessage(`"\ufffd"`), json.RawMessage("-0")} {
		if _, err := Canonical(v); err != nil {
			t.Errorf("%v: %v", v, err)
		}
	}
}

// Whatever Canonical accepts means the same as before, and is its own form.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{`{"b":[1,2.5e3],"a":"\u00e9\ud83d\ude00"}`, `[null,true,-0,1e-7]`, `"\\"`, `{"":{}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := Canonical(json.RawMessage(s))
		if err != nil {
			return
		}
		if !json.Valid(once) || !json.Valid([]byte(s)) {
			t.Fatalf("%q became %q", s, once)
		}
		twice, err := Canonical(json.RawMessage(once))
		if err != nil || string(twice) != string(once) {
			t.Fatalf("%q became %q, then %q (%v)", s, once, twice, err)
		}
	})
}
