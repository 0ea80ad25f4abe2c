// Quickstart stores a document, reads it, changes it only if nobody else has, and removes it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	kvstore "github.com/kvstore/kvstore/clients/go"
)

type user struct {
	Name string `json:"name"`
	Age  int    `json:"age"`
}

func main() {
	// Where: KVSTORE_ENDPOINTS, else http://127.0.0.1:9090.
	client, err := kvstore.New(kvstore.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := run(context.Background(), client); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, client *kvstore.Client) error {
	version, err := client.Put(ctx, "example/ada", user{Name: "Ada", Age: 36}, kvstore.WithTTL(time.Hour))
	if err != nil {
		return err
	}

	entry, err := client.Get(ctx, "example/ada")
	if err != nil {
		return err
	}
	var ada user
	if err := entry.JSON(&ada); err != nil {
		return err
	}
	fmt.Printf("%s is %d; stored as %s, expires in %v\n", ada.Name, ada.Age, entry.Text, entry.TTL)

	// Only the first of these finds the version that it expects.
	for range 2 {
		ada.Age++
		_, err = client.Put(ctx, "example/ada", ada, kvstore.WithIfVersion(version))
		if errors.Is(err, kvstore.ErrVersionMismatch) {
			fmt.Println("somebody was faster: read again, then decide")
		} else if err != nil {
			return err
		}
	}

	deleted, err := client.Delete(ctx, "example/ada")
	if err != nil {
		return err
	}
	missing, err := client.Get(ctx, "example/ada")
	fmt.Println("deleted:", deleted, "still there:", missing != nil)
	return err
}
