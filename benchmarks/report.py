def write(*a):
    print(a[0])
