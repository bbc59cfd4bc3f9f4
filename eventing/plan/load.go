package plan

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"sigs.k8s.io/yaml"
)

// Objects is what a plan is made from.
type Objects struct {
	Brokers  []*eventingv1.Broker
	Triggers []*eventingv1.Trigger
}

// Load reads every .yaml and .yml file under the root of fsys, which may hold Brokers and Triggers and nothing else.
// An unknown field, another kind and an object that is there twice are errors that name the file.
func Load(fsys fs.FS) (Objects, error) {
	var objects Objects
	seen := map[string]string{} // "Kind namespace/name" to file
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if extension := path.Ext(name); entry.IsDir() || extension != ".yaml" && extension != ".yml" {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		decoded, err := Decode(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, broker := range decoded.Brokers {
			if err := once(seen, name, "Broker "+keyOf(broker)); err != nil {
				return err
			}
		}
		for _, trigger := range decoded.Triggers {
			if err := once(seen, name, "Trigger "+keyOf(trigger)); err != nil {
				return err
			}
		}
		objects.Brokers = append(objects.Brokers, decoded.Brokers...)
		objects.Triggers = append(objects.Triggers, decoded.Triggers...)
		return nil
	})
	if err != nil {
		return Objects{}, fmt.Errorf("load manifests: %w", err)
	}
	return objects, nil
}

func once(seen map[string]string, file, object string) error {
	if first, found := seen[object]; found {
		return fmt.Errorf("%s: %s is already in %s", file, object, first)
	}
	seen[object] = file
	return nil
}

// Decode reads the Brokers and Triggers of one YAML text of any number of documents, strictly.
func Decode(text []byte) (Objects, error) {
	var objects Objects
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return Objects{}, fmt.Errorf("read a YAML document: %w", err)
		}
		if err := objects.add(document); err != nil {
			return Objects{}, err
		}
	}
}

func (o *Objects) add(document []byte) error {
	var content any
	if err := yaml.Unmarshal(document, &content); err != nil {
		return fmt.Errorf("decode YAML: %w", err)
	}
	if content == nil {
		return nil // only comments
	}
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return fmt.Errorf("decode apiVersion and kind: %w", err)
	}
	if want := eventingv1.SchemeGroupVersion.String(); meta.APIVersion != want {
		return fmt.Errorf("apiVersion %q of a %s: want %s", meta.APIVersion, meta.Kind, want)
	}
	switch meta.Kind {
	case "Broker":
		broker := &eventingv1.Broker{}
		if err := yaml.UnmarshalStrict(document, broker); err != nil {
			return fmt.Errorf("decode a Broker: %w", err)
		}
		o.Brokers = append(o.Brokers, broker)
	case "Trigger":
		trigger := &eventingv1.Trigger{}
		if err := yaml.UnmarshalStrict(document, trigger); err != nil {
			return fmt.Errorf("decode a Trigger: %w", err)
		}
		o.Triggers = append(o.Triggers, trigger)
	default:
		return fmt.Errorf("kind %q: want Broker or Trigger", meta.Kind)
	}
	return nil
}
