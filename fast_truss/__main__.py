from fast_truss.cli import main

if __name__ == "__main__":
    main()
